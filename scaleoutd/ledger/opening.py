# SPDX-License-Identifier: Apache-2.0
"""What a ledger knows when it starts: read back from the trail, and checked against its last signed checkpoint.

Reads from the segment of `resume.json` on, or everything when that note is missing or does not lead to the signed root.
A trail that does not verify is not continued: LedgerError-like refusal `trail-broken`, for a person to look at.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from scaleoutd.core.chain import Tip
from scaleoutd.core.checkpoint import VerifierKey, parse_key
from scaleoutd.core.merkle import Tree
from scaleoutd.core.trail import read_line
from scaleoutd.errors import VerificationError
from scaleoutd.ledger.checkpoints import CheckpointFile, Resume, read_resume
from scaleoutd.ledger.floors import Floors
from scaleoutd.ledger.journal import Journal

HINT = "Do not repair it: keep the folder, run 'scaleoutctl audit verify' on a copy, then begin a new trail."


@dataclass
class Standing:
    """The end of the trail."""

    tree: Tree = field(default_factory=Tree)
    tip: Tip | None = None
    last_type: str = ""
    epoch: int = 0
    epoch_key: str = ""  # verifier key of the last epoch-key-made that was read
    floors: Floors = field(default_factory=Floors)
    ids: dict[tuple[str, str], int] = field(default_factory=dict)  # (room, event id) → sequence
    segment_first: int = 0  # first sequence of the last segment


def restore(journal: Journal, checkpoints: CheckpointFile, folder: Path, origin: str) -> Standing:
    """Reads the trail; VerificationError `trail-broken` when it is not the one that was signed."""
    if checkpoints.last is not None:
        check_signature(checkpoints, folder)
    resume = read_resume(folder)
    if resume is not None and resume.segment in journal.numbers and resume.size <= checkpoints.size:
        try:
            return _replay(journal, checkpoints, origin, resume)
        except VerificationError:
            pass  # the note may be wrong, the trail right: only reading everything can say
    return _replay(journal, checkpoints, origin, Resume(journal.numbers[0]))


def check_signature(checkpoints: CheckpointFile, folder: Path) -> None:
    """The last checkpoint must be signed by one of our own keys."""
    if checkpoints.last is None:
        return
    note, point = checkpoints.last
    keys: list[VerifierKey] = [parse_key(path.read_text()) for path in sorted((folder / "keys").glob("epoch-*.vkey"))]
    if not any(key.signed(note) for key in keys):
        raise _broken(f"none of our keys signed the checkpoint of size {point.size}")


def _replay(journal: Journal, checkpoints: CheckpointFile, origin: str, start: Resume) -> Standing:
    standing = Standing(start.tree(), start.tip, epoch=start.epoch)
    floors = standing.floors
    floors.time_ms, floors.reference_ms, floors.root_version = start.time_ms, start.reference_ms, start.root_version
    floors.root_sha256 = start.root_sha256 or ""
    floors.manifest_versions.update(start.manifest_versions)
    signed = checkpoints.last[1] if checkpoints.last else None
    for number in (number for number in journal.numbers if number >= start.segment):
        standing.segment_first = standing.tree.size
        for line in journal.lines(number):
            take(standing, line, origin, journal.numbers[-1] - number <= 1)
            if signed is not None and standing.tree.size == signed.size and standing.tree.root() != signed.root:
                raise _broken(f"its first {signed.size} events are not those that were signed")
    if signed is not None and signed.size > standing.tree.size:
        raise _broken(f"a signed checkpoint knows {signed.size} events, there are {standing.tree.size}")
    return standing


def take(standing: Standing, line: bytes, origin: str, recent: bool) -> None:
    found = read_line(line)
    sequence = standing.tree.size
    if found is None or found.sequence != sequence or found.chain_uid != origin or found.previous != standing.tip:
        raise _broken(f"event {sequence} does not fit into the chain")
    unmapped = found.value["unmapped"]
    standing.tree.append(line)
    standing.tip = found.tip
    standing.last_type = found.type
    try:
        standing.floors.apply(found.type, unmapped["event"], found.time_ms)
        if found.type == "epoch-key-made":
            standing.epoch, standing.epoch_key = int(unmapped["event"]["epoch"]), str(unmapped["event"]["key"])
    except (KeyError, TypeError, ValueError, AttributeError) as exc:
        raise _broken(f"event {sequence} is a {found.type} without what belongs to one") from exc
    if recent:
        standing.ids[unmapped["room"], found.tip.uid] = sequence


def _broken(cause: str) -> VerificationError:
    return VerificationError(f"cannot continue the audit trail: {cause}", code="trail-broken", hint=HINT)
