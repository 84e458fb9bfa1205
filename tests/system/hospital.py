# SPDX-License-Identifier: Apache-2.0
"""The site around an installed node: a combiner of the test's own, and what an administrator brings to the node.

The combiner runs in the test's process (so it outlives every reboot and its faults are at hand) and is reached through a forward.
What comes into the guest is what a person would bring (certificate, token, project, trust root), by the person's commands.

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
from tests.system.process import GuestGone

NODE = "ward-7"
ETC, PROJECT, GATE, BROUGHT = "/etc/scaleoutd", "/var/lib/scaleoutd/project", "/srv/gate", "/root/brought"
TRUST_ROOT = Path(ETC, "trust")
QUICK = {"poll_ms": 200, "heartbeat_ms": 500, "backoff_ms": 100, "backoff_limit_ms": 1000}
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
        self._policy = {"data_sets": {"gate": {"path": GATE}}, **policy} if policy else {}
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
        """What a person brings is in the guest and in force, by the commands that a person uses; nothing is started."""
        guest = self.guest
        certificate, key = self.combiner.issue_client_certificate(NODE)
        guest.run(f"mkdir -p -m 755 {GATE} && mkdir -p -m 700 {BROUGHT}")
        for name, content in (
            ("client.pem", certificate.read_bytes()),
            ("client.key", key.read_bytes()),
            ("ca.pem", self.combiner.ca_file.read_bytes()),
            ("root.json", self.trust_root.read_bytes()),
            ("enrollment", self.combiner.mint_enrollment().encode()),
        ):
            guest.write(f"{BROUGHT}/{name}", content, mode=0o600)
        guest.push(self.project.folder, f"{BROUGHT}/project")
        for command in self.commands():
            guest.run(f"cd {BROUGHT} && {command}", timeout_s=90)
        guest.write(f"{ETC}/scaleoutd.d/50-quick.yaml", json.dumps({"intervals": QUICK}))
        if self._policy:
            policy = {
                **json.loads(write_policy(self.folder / "policy.yaml", self.project, TRUST_ROOT, **self._policy).read_text())
            }
            policy["project"]["path"] = f"{PROJECT}/current"
            guest.write(f"{ETC}/policy.yaml", json.dumps(policy, indent=1))
            guest.run("scaleoutctl policy apply")

    def commands(self) -> list[str]:
        """From an installed package to a node that can be started; the fifth is `systemctl enable --now scaleoutd`."""
        return [
            f"scaleoutctl config init --api-url {self.combiner.api_url} --name {NODE} --client-id {NODE}"
            f" --project {self.project.name} --trust-root root.json --data gate={GATE} --metric loss --metric accuracy",
            "scaleoutctl identity install client.pem --key client.key --ca ca.pem",
            "scaleoutctl enroll --token-file enrollment",
            "scaleoutctl project install project",
        ]

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
            try:
                holder.end_input()
                holder.wait()
            except GuestGone:
                pass  # it was rebooted meanwhile, and the holder with it

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
        # A session goes on when a round had no answer in time, so it being completed says nothing.
        done = [update for update in self.combiner.updates if update.counted]
        assert len(done) >= number, (self.combiner.history, self.told())

    def counted(self, correlation_id: str) -> int:
        """How many updates of a task went into a round's result."""
        return sum(update.correlation_id == correlation_id and update.counted for update in self.combiner.updates)

    # What it looks like from inside

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
