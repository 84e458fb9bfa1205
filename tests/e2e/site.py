# SPDX-License-Identifier: Apache-2.0
"""A site for end-to-end tests: a signed project, a trust root, a policy, and a node started by its real command line.

The signing here uses the core formats directly, so that a test can sign what `scaleoutctl sign` would refuse.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from scaleoutd.core.envelope import STATEMENT_TYPE, serialise_envelope, sign_payload
from scaleoutd.core.keys import public_key_of
from scaleoutd.core.manifest import MANIFEST_NAME, Expected, FileEntry, Manifest, manifest_payload
from scaleoutd.core.trust import Role, TrustedKey, TrustRoot, sign_trust_root
from scaleoutd.devcombiner.npz import flat, write_npz
from scaleoutd.devcombiner.records import PREDICT as PREDICT_TASK
from scaleoutd.devcombiner.records import TRAIN as TRAIN_TASK
from scaleoutd.devcombiner.records import VALIDATE as VALIDATE_TASK
from scaleoutd.devcombiner.records import Offer
from scaleoutd.devcombiner.server import DevCombiner
from tests.processes import processes

YEAR_MS = 365 * 24 * 3600 * 1000
ROOT = Path(__file__).resolve().parents[2]

TRAIN = """\
import json, sys, zipfile, io
source, target = sys.argv[1:3]
data = open(source, "rb").read()
with zipfile.ZipFile(io.BytesIO(data)) as archive:
    if "training_model.bin" in archive.namelist():
        data = archive.read("training_model.bin")
{body}
open(target, "wb").write(data)
json.dump({{"num_examples": 7, "loss": 0.5}}, open(target + "-metadata", "w"))
print("trained")
"""
VALIDATE = """\
import json, sys
json.dump({"loss": 0.25, "accuracy": 0.75}, open(sys.argv[2], "w"))
print("validated")
"""


def now_ms() -> int:
    return time.time_ns() // 1_000_000


@dataclass
class Project:
    """A folder with a project that echoes the model, and the key that signs it."""

    folder: Path
    key: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)
    name: str = "echo"
    version: int = 1
    data_sets: tuple[str, ...] = ()

    def write(self, train_body: str = "", validate: str = VALIDATE) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "scaleout.yaml").write_text(
            "entry_points:\n  train: {command: python train.py}\n  validate: {command: python validate.py}\n"
        )
        (self.folder / "train.py").write_text(TRAIN.format(body=train_body))
        (self.folder / "validate.py").write_text(validate)

    def manifest(self, **changes: Any) -> Manifest:
        files = []
        for path in sorted(item for item in self.folder.rglob("*") if item.is_file() and item.name != MANIFEST_NAME):
            data = path.read_bytes()
            executable = bool(path.stat().st_mode & 0o100)
            entry = FileEntry(str(path.relative_to(self.folder)), len(data), hashlib.sha256(data).hexdigest(), executable)
            files.append(entry)
        made = Manifest(
            project=self.name,
            version=self.version,
            not_before_ms=now_ms() - 1000,
            expires_ms=now_ms() + YEAR_MS,
            files=tuple(files),
            steps={"train": ("python", "train.py"), "validate": ("python", "validate.py")},
            data_sets={data_set: Expected() for data_set in self.data_sets},
        )
        return replace(made, **changes)

    def sign(self, keys: Sequence[Ed25519PrivateKey] | None = None, **changes: Any) -> None:
        payload = manifest_payload(self.manifest(**changes))
        envelope = sign_payload(payload, STATEMENT_TYPE, list(keys or [self.key]))
        (self.folder / MANIFEST_NAME).write_bytes(serialise_envelope(envelope))

    def write_trust_root(self, path: Path, **changes: Any) -> Path:
        public = public_key_of(self.key)
        role = Role((public.keyid,), 1)
        root = TrustRoot(
            type="scaleoutd-trust-root-v1",
            version=1,
            expires_ms=now_ms() + YEAR_MS,
            keys={public.keyid: TrustedKey(public.pem, name="tester")},
            roles={"root": role, "ml": role},
        )
        path.write_bytes(serialise_envelope(sign_trust_root(replace(root, **changes), [self.key])))
        return path


def write_policy(path: Path, project: Project, trust_root: Path, **changes: Any) -> Path:
    """policy.yaml; `changes` replace whole top-level keys (JSON is YAML)."""
    policy: dict[str, Any] = {
        "version": 1,
        "project": {"name": project.name, "path": str(project.folder)},
        "trust_root": str(trust_root),
        "environments": {"system": {"python": "/usr/bin/python3"}},
        "limits": {"wall_clock_s": 60, "cpu_s": 60, "memory_bytes": 512 * 1024**2, "scratch_bytes": 64 * 1024**2},
        "egress": {"metrics": ["loss", "accuracy"], "metadata": ["loss"]},
        "settings_schema": {},
    }
    policy.update(changes)
    path.write_text(json.dumps(policy, indent=1))
    return path


@dataclass
class NodeProcess:
    """`scaleoutd client start` as a child, with what it prints."""

    arguments: Sequence[str]
    token: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    wrapper: Sequence[str] = ()  # a command that ends in an exec of what follows it

    def __post_init__(self) -> None:
        environment = {key: value for key, value in os.environ.items() if key not in ("VIRTUAL_ENV", "CONDA_PREFIX")}
        environment.update(self.environment)
        if self.token:
            environment["SCALEOUT_AUTH_TOKEN"] = self.token
        self.process = subprocess.Popen(
            self.command(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=ROOT,
            env=environment,
        )
        self.lines: list[str] = []
        self._arrived = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def command(self) -> list[str]:
        return [*self.wrapper, sys.executable, "-m", "scaleoutd.cli.scaleoutd", "client", "start", *self.arguments]

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._arrived:
                self.lines.append(line.rstrip("\n"))
                self._arrived.notify_all()
        with self._arrived:
            self._arrived.notify_all()

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    def wait_for(self, wanted: str, timeout_s: float = 90, after: int = 0) -> str:
        """The first line that holds `wanted`, from line `after` on; waits for it."""
        deadline = time.monotonic() + timeout_s
        with self._arrived:
            while True:
                for line in self.lines[after:]:
                    if wanted in line:
                        return line
                left = deadline - time.monotonic()
                if left <= 0 or (self.process.poll() is not None and not self._reader.is_alive()):
                    raise AssertionError(f"{wanted!r} did not come; the node said:\n{self.text}")
                self._arrived.wait(min(left, 0.5))

    def children(self) -> dict[str, int]:
        """Room → pid of the children of this node, from /proc."""
        found: dict[str, int] = {}
        for item in processes():
            if item.parent == self.process.pid:
                for room in ("agent", "runner", "ledger"):
                    if f"scaleoutd.{room}.__main__" in item.command:
                        found[room] = item.pid
                if "scaleoutd.step.template" in item.command:
                    found["step"] = item.pid
        return found

    def stop(self, timeout_s: float = 60) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"the node did not end; it said:\n{self.text}") from None
        finally:
            self._reader.join(60)


def trail(state: Path) -> list[dict[str, Any]]:
    """Every event of a node's trail, as JSON objects in order.

    It may be written meanwhile: a last line without its end is left out.
    """
    segments = sorted((state / "audit").glob("*.jsonl"))
    lines = (line for segment in segments for line in segment.read_bytes().splitlines(keepends=True))
    return [json.loads(line) for line in lines if line.endswith(b"\n")]


def events(state: Path, *names: str) -> list[dict[str, Any]]:
    """What the rooms sent for the events of these types, in order, with `type` added; all without names."""
    of_type = [event for event in trail(state) if not names or event["metadata"]["event_code"] in names]
    return [{**event["unmapped"]["event"], "type": event["metadata"]["event_code"]} for event in of_type]


def wait_until(predicate: Callable[[], Any], timeout_s: float, what: Callable[[], str]) -> Any:
    """The first true value of `predicate`, for what announces itself in files only."""
    deadline = time.monotonic() + timeout_s
    while True:
        if found := predicate():
            return found
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s} s: {what()}")
        time.sleep(0.01)


SEED = write_npz({"0": flat("f8", (3,), [1.0, 2.0, 3.0])})


class Site:
    """One hospital: a signed project, trust root and policy below `folder`, and nodes that run it.

    with Site(tmp_path, combiner) as site:
        node = site.start("ward-7")
        done = site.task("train")           # offered to the node, waited for: the combiner's Offer
    """

    def __init__(self, folder: Path, combiner: DevCombiner | None = None, *, train_body: str = "", **policy: Any) -> None:
        self.folder, self.combiner = folder, combiner
        folder.mkdir(parents=True, exist_ok=True)
        self.project = Project(folder / "project")
        self.project.write(train_body)
        self.project.sign()
        self.trust_root = self.project.write_trust_root(folder / "root.json")
        self.policy = write_policy(folder / "policy.yaml", self.project, self.trust_root, **policy)
        self.state = folder / "state"
        self.wrapper: Sequence[str] = ()  # of every node; see NodeProcess
        self.nodes: list[NodeProcess] = []
        self._client = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for node in self.nodes:
            node.stop()
        if kind is not None:
            sys.stderr.write("\n".join(node.text for node in self.nodes) + "\n")

    def rewrite_policy(self, **policy: Any) -> None:
        self.policy = write_policy(self.policy, self.project, self.trust_root, **policy)

    def arguments(self, name: str = "ward-7", state: Path | None = None, **changes: str | None) -> list[str]:
        """The command line of a node; an option with None is left out, `_` stands for `-` in its name."""
        assert self.combiner is not None
        cert, key = self.combiner.issue_client_certificate(name)
        options: dict[str, str | None] = {
            "api_url": self.combiner.api_url,
            "name": name,
            "client_id": name,
            "ca": str(self.combiner.ca_file),
            "cert": str(cert),
            "key": str(key),
            "policy": str(self.policy),
            "state_dir": str(state or self.state),
            "poll_interval": "0.2",
            "log_format": "json",
        }
        options.update(changes)
        given = [(f"--{option.replace('_', '-')}", value) for option, value in options.items() if value is not None]
        return ["--local-package", *(word for pair in given for word in pair)]

    def launch(self, name: str = "ward-7", state: Path | None = None, **changes: str | None) -> NodeProcess:
        assert self.combiner is not None
        node = NodeProcess(self.arguments(name, state, **changes), self.combiner.mint_enrollment(), wrapper=self.wrapper)
        self.nodes.append(node)
        self._client = name
        return node

    def start(self, name: str = "ward-7", state: Path | None = None, **changes: str | None) -> NodeProcess:
        """A node that is connected."""
        node, combiner = self.launch(name, state, **changes), self.combiner
        assert combiner is not None
        assert combiner.board.wait_until(lambda: name in combiner.board.connected(), 90), node.text
        return node

    def offer(self, task: str = "train", model_id: str | None = None, **more: Any) -> str:
        """Its correlation id."""
        assert self.combiner is not None
        kind = {"train": TRAIN_TASK, "validate": VALIDATE_TASK, "predict": PREDICT_TASK}[task]
        return self.combiner.offer_task(self._client, kind, model_id or self.combiner.put_model(SEED), **more)

    def wait(self, correlation_id: str, timeout_s: float = 90) -> Offer:
        """The offer when the node has reported its end."""
        assert self.combiner is not None
        offer = self.combiner.board.offers[correlation_id]
        assert self.combiner.board.wait_until(lambda: offer.done, timeout_s), (offer, [node.text for node in self.nodes])
        return offer

    def task(self, task: str = "train", **more: Any) -> Offer:
        return self.wait(self.offer(task, **more))

    def events(self, *names: str, correlation_id: str = "") -> list[dict[str, Any]]:
        found = events(self.state, *names)
        return [event for event in found if event.get("correlation_id") == correlation_id] if correlation_id else found
