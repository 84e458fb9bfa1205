# SPDX-License-Identifier: Apache-2.0
"""The site around an installed node: a combiner of the test's own, and what an administrator brings to the node.

The combiner runs in the test's process (so it outlives every reboot and its faults are at hand) and is reached through a forward.
What is written into the guest is what a person would bring: certificate, token, project, trust root, policy.

The train step of its project can be held: it opens a FIFO of its data set, if there is one, and waits for the writer to close it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from scaleoutd.devcombiner.records import TRAIN, VALIDATE, Offer
from tests.e2e.site import SEED, Project, write_policy
from tests.fault.node import HeldCombiner
from tests.system.forward import Forward
from tests.system.guest import Guest

NODE = "ward-7"
ETC, PROJECT, GATE = "/etc/scaleoutd", "/var/lib/scaleoutd/project", "/srv/gate"
HELD_STEP = """\
import os
try:
    with open(os.environ["SCALEOUTD_DATA_GATE"] + "/gate") as waited:
        waited.read()
except FileNotFoundError:
    pass
"""
# Opens when a step has opened the other end, and lets it go at the end of its input.
HOLD = f"exec 3>{GATE}/gate; echo 'the step waits'; cat; rm {GATE}/gate"


class Hospital:
    """One combiner, one signed project and the guest that is the node; `folder` is the host's."""

    def __init__(self, guest: Guest, folder: Path, *, train_body: str = "", **policy: Any) -> None:
        self.guest, self.folder = guest, folder
        folder.mkdir(parents=True, exist_ok=True)
        self.combiner = HeldCombiner()
        self.project = Project(folder / "project")
        self.project.data_sets = ("gate",)
        self.project.write(HELD_STEP + train_body)
        self.project.sign()
        self.trust_root = self.project.write_trust_root(folder / "root.json")
        self._policy: dict[str, Any] = {"data_sets": {"gate": {"path": GATE}}, **policy}
        self._forward: Forward | None = None

    def __enter__(self) -> Self:
        self.combiner.start()
        self.online()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.offline()
        self.combiner.stop()

    # The node

    def bring(self) -> None:
        """Everything of the site into the guest, which has the tree or the package installed; the policy is put into force."""
        certificate, key = self.combiner.issue_client_certificate(NODE)
        token = self.combiner.mint_enrollment()
        for name, content in (
            ("client.pem", certificate.read_bytes()),
            ("client.key", key.read_bytes()),
            ("ca.pem", self.combiner.ca_file.read_bytes()),
            ("token", token.encode()),
        ):
            self.guest.write(f"{ETC}/identity/{name}", content, mode=0o600)
        self.guest.write(f"{ETC}/trust/root.json", self.trust_root.read_bytes())
        self.guest.write(f"{ETC}/scaleoutd.yaml", self.config_text())
        self.guest.write(f"{ETC}/policy.yaml", self.policy_text())
        self.guest.push(self.project.folder, f"{PROJECT}/releases/0001-first")
        self.guest.run(f"mkdir -p {GATE} && ln -sfn releases/0001-first {PROJECT}/current && chgrp -R scaleoutd-runner {PROJECT}")
        self.guest.run(f"chmod -R g+rX,o-rwx {PROJECT} && scaleoutctl policy apply")

    def start(self) -> None:
        """As an administrator does, and waits until the node is connected."""
        self.guest.run("systemctl enable --now scaleoutd.service", timeout_s=90)
        self.wait_connected()

    @contextmanager
    def step_held(self) -> Iterator[Callable[[], object]]:
        """Train steps that start meanwhile wait until the end; the function returns when one does."""
        self.guest.run(["mkfifo", "-m", "644", f"{GATE}/gate"])
        holder = self.guest.start(HOLD, stdin=None)
        try:
            yield lambda: holder.wait_for("the step waits")
        finally:
            if not self.guest.ended:
                holder.end_input()
                holder.wait()

    # The network

    def online(self) -> None:
        """The node reaches the combiner, until `offline` or a reboot."""
        self.offline()
        rest_port = int(self.combiner.api_url.rpartition(":")[2])
        self._forward = Forward(self.guest, {port: port for port in (rest_port, self.combiner.grpc_port)})

    def offline(self) -> None:
        if self._forward:
            self._forward.close()
            self._forward = None

    # Tasks

    def wait_connected(self, timeout_s: float = 60) -> None:
        board = self.combiner.board
        limit_s = self.guest.patience * timeout_s
        assert board.wait_until(lambda: NODE in board.connected(), limit_s), self.told()

    def arm(self, where: str) -> Callable[[], object]:
        """The next call that comes to this point of HeldCombiner stands there until `go`; the function returns when one does."""
        self.combiner.arm(where)

        def reached() -> None:
            assert self.combiner._reached[where].wait(self.guest.patience * 30), f"no call came to {where}\n{self.told()}"

        return reached

    def offer(self, kind: str = "train", model: bytes = SEED, **more: Any) -> str:
        """Its correlation id."""
        return self.combiner.offer_task(
            NODE, {"train": TRAIN, "validate": VALIDATE}[kind], self.combiner.put_model(model), **more
        )

    def wait(self, correlation_id: str, timeout_s: float = 60) -> Offer:
        """The offer when the node has reported its end."""
        offer = self.combiner.board.offers[correlation_id]
        assert self.combiner.board.wait_until(lambda: offer.done, self.guest.patience * timeout_s), (offer, self.told())
        return offer

    def rounds(self, number: int = 2, timeout_s: float = 60) -> None:
        """A whole session."""
        limit_s = self.guest.patience * timeout_s
        self.combiner.start_session(SEED, number, 1, limit_s)
        session = self.combiner.wait_session(limit_s * (2 * number + 1))
        assert session.status == "completed", (session.status, self.combiner.history, self.told())

    def counted(self, correlation_id: str) -> int:
        """How many updates of a task went into a round's result."""
        return sum(update.correlation_id == correlation_id and update.counted for update in self.combiner.updates)

    # What it looks like from inside

    def policy_text(self, **changes: Any) -> str:
        """policy.yaml of an installed node."""
        path = write_policy(self.folder / "policy.yaml", self.project, Path("/etc/scaleoutd/trust/root.json"), **self._policy)
        policy = {**json.loads(path.read_text()), **changes}
        policy["project"]["path"] = "/var/lib/scaleoutd/project/current"
        # /tmp and /dev/shm count as memory of the run: units refuse more than fits (core/render.py).
        policy["limits"] = {"tmp_bytes": 64 * 1024**2, "shm_bytes": 64 * 1024**2, **policy["limits"]}
        return json.dumps(policy, indent=1)

    def config_text(self) -> str:
        """scaleoutd.yaml."""
        quick = {"poll_ms": 200, "heartbeat_ms": 500, "backoff_ms": 100, "backoff_limit_ms": 1000}
        return json.dumps(
            {"version": 1, "api_url": self.combiner.api_url, "client": {"id": NODE, "name": NODE}, "intervals": quick}, indent=1
        )

    def trail(self, *names: str) -> list[dict[str, Any]]:
        """What the rooms sent for the events of these types, in order, with `type` added; all without names."""
        text = self.guest.run("cat /var/lib/scaleoutd/audit/*.jsonl", check=False).stdout
        found = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
        return [
            {**event["unmapped"]["event"], "type": event["metadata"]["event_code"]}
            for event in found
            if not names or event["metadata"]["event_code"] in names
        ]

    def told(self) -> str:
        """What the node's units wrote, for the message of an assertion."""
        return self.guest.journal("scaleoutd*")[-12000:]
