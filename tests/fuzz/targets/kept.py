# SPDX-License-Identifier: Apache-2.0
"""What rooms and people keep in folders: store index, run-once table, outbox, holds, approvals, floors, drafts of a root."""

from __future__ import annotations

import functools
import hashlib
import json

from scaleoutd.cli.nodeenroll import Enrolled, read_enrolled
from scaleoutd.cli.nodestate import read_tasks
from scaleoutd.cli.place import Place
from scaleoutd.cli.rootdraft import RootFolder, lines_of, told
from scaleoutd.core import records, strictjson, taskstate
from scaleoutd.core.clock import Floors
from scaleoutd.core.envelope import TRUST_ROOT_TYPE, Envelope, serialise_envelope, sign_payload
from scaleoutd.core.taskstate import RUN_STATES
from scaleoutd.core.trust import missing_signatures, parse_trust_root
from scaleoutd.hold import Hold, HoldFile
from scaleoutd.ipc.messages import TaskOffer
from scaleoutd.runner.budget import Approval, Approvals, Kept, Session
from scaleoutd.runner.outbox import Outbox
from scaleoutd.runner.room import read_floors
from scaleoutd.runner.runs import Runs, run_name
from scaleoutd.runner.store import _Index, _read_index
from tests.fuzz.target import Target, same
from tests.fuzz.targets.scratch import scratch_file, scratch_folder
from tests.unit.core.trust_samples import ALICE, MALLORY, ROOT_KEY, make_root, root_bytes

_APART = b"\n=====\n"
_OFFER = TaskOffer("c", "train", "m", "s", "r", "h:1", "{}")


def _index(data: bytes) -> None:
    """An index that cannot be read is none: then everything is proven again."""
    with scratch_file(data) as path:
        index = _read_index(path)
    if index is not None:
        same(strictjson.canonical(records.encode(index)), data, "the index written again")


def _hold(data: bytes) -> None:
    with scratch_folder({"hold.json": data}) as folder:
        held = HoldFile(folder).now
        assert held is not None
        (folder / "hold.json").write_bytes(strictjson.canonical(records.encode(held)))
        same(HoldFile(folder).now, held, "the hold written and read")


def _approvals(data: bytes) -> None:
    with scratch_folder({"approvals.json": data}) as folder:
        kept = Approvals(folder).kept
        approvals = Approvals(folder)
        approvals.wait_for("s2", "h:2", 5)
        approvals.approve(Approval("s3", "h:3", "ab" * 32, "ann", 7, 9))
        read = Approvals(folder).kept
        same(read, approvals.kept, "the approvals written and read")
        same(read.acted, kept.acted, "who acted")


def _floors(data: bytes) -> None:
    with scratch_file(data) as path:
        floors = read_floors(path)
    same(records.decode(Floors, records.encode(floors)), floors, "the floors written and read")


def _enrolled(data: bytes) -> None:
    with scratch_folder({"etc/scaleoutd/enrolled.json": data}) as folder:
        assert read_enrolled(Place.of(folder)) is not None


def _runs(data: bytes) -> None:
    """task.json, then the states of one entry, as the runner and as `scaleoutctl tasks` take them up."""
    offer, _, states = data.partition(_APART)
    name = f"runs/{run_name('c')}"
    with scratch_folder({f"runner/{name}/task.json": offer, f"runner/{name}/state": states}) as folder:
        problems: list[str] = []
        rows = read_tasks(folder, problems)
        strictjson.canonical([[row.run, row.state] for row in rows])
        runs = Runs(folder / "runner" / "runs")
        for run in runs.all():
            assert run.attempts >= run.begun >= 0
            run.close()
        runs.counts(0, "s", "b", 0)


def _outbox(data: bytes) -> None:
    """Nothing but the recorded bytes is ever handed out, whatever lies in the folder."""
    name, _, body = data.partition(b"\n")
    wanted = b'{"num_examples":3}'
    with scratch_folder({"r/body.json": body, **({"r/update.zip": wanted} if name == b"zip" else {})}) as folder:
        found = Outbox(folder).get("r", len(wanted), hashlib.sha256(wanted).hexdigest())
        assert found.weights or found.body == wanted


def _draft(data: bytes) -> None:
    """The draft of root 1 or of root 2, as `trust show`, `sign` and `add` take it up."""
    for roots in ({}, {"1.json": root_bytes(make_root())}):
        number = len(roots) + 1
        payload = _resigned(data)
        with scratch_folder({**roots, f"{number}.draft": payload}) as path:
            folder = RootFolder.read(path)
            assert folder.draft is not None
            root = folder.newest
            json.dumps(told(root)).encode()
            "\n".join(lines_of(root)).encode()
            same(parse_trust_root(root.payload()), root, "the draft's root written and read")
            missing_signatures(folder.draft, root, folder.last)


def _resigned(data: bytes) -> bytes:
    """An envelope as it is; a payload in an envelope of the root key's."""
    if b'"payloadType"' in data:
        return data
    return serialise_envelope(sign_payload(data, TRUST_ROOT_TYPE, [ROOT_KEY, MALLORY]))


@functools.cache
def _draft_seeds() -> list[bytes]:
    root = make_root(version=2)
    return [serialise_envelope(Envelope(root.payload(), TRUST_ROOT_TYPE, ())), root.payload(), root_bytes(root, ROOT_KEY, ALICE)]


def _run_seeds() -> list[bytes]:
    before = None
    lines = b""
    for state in ("accepted", "about-to-run"):
        before = RUN_STATES.advance(before, state, 5, {"boot": "b", "up_ms": 3})
        lines += taskstate.encode(before) + b"\n"
    return [strictjson.canonical(records.encode(_OFFER)) + _APART + lines]


_KEPT = Kept({"pause": (1, 2)}, (Session("s", "h:1", 3),), (Approval("s", "h:1", "ab" * 32, "ann", 7, 9),))
_RECORD = frozenset({"json-invalid", "record-invalid"})
_CORRUPT = frozenset({"state-corrupt"})
_DRAFT = frozenset({*_RECORD, "envelope-invalid", "trust-root-invalid", "key-invalid"})


def _written(value: object) -> bytes:
    return strictjson.canonical(records.encode(value))


TARGETS = (
    Target("store-index", _index, lambda: [_written(_Index("ab" * 32, "cd" * 32, "b"))], frozenset(), json=True),
    Target("hold", _hold, lambda: [_written(Hold("pause", 5, "ann", "why"))], _CORRUPT, json=True),
    Target("approvals", _approvals, lambda: [_written(_KEPT), b"{}"], _CORRUPT, json=True),
    Target("floors", _floors, lambda: [_written(Floors(5, 2, {"p": 3}))], _RECORD, json=True),
    Target("enrolled", _enrolled, lambda: [_written(Enrolled("ab" * 32, "https://a", "c", 5))], _CORRUPT, json=True),
    Target(
        "run-table",
        _runs,
        _run_seeds,
        frozenset({*_RECORD, *_CORRUPT}),
        (_APART, b'"state":"accepted"', b'"about-to-run"', b'"fields"', b'"correlation_id"', b"[1]", b"\n"),
    ),
    Target("outbox", _outbox, lambda: [b'\n{"num_examples":3}', b'zip\n{"num_examples":3}'], _CORRUPT, (b"zip\n",)),
    Target("trust-draft", _draft, _draft_seeds, _DRAFT, (b'"revoked_keys"', b'"root"'), json=True),
)
