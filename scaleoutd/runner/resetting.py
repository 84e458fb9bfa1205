# SPDX-License-Identifier: Apache-2.0
"""`scaleoutctl trust reset`: a person's word against what this node accepted before.

Rules:
  1. Only root, as the kernel says; a group that may pause a node may not choose whom it trusts.
  2. Root tells the ledger first, which takes that from the command line only: a runner that fell cannot lower those floors.
     The runner then follows the ledger, in exactly what it was told and what the ledger has on record.
  3. A crash in between leaves the two in disagreement, and nothing runs until the same command has finished the work.
"""

from __future__ import annotations

from pathlib import Path

from scaleoutd.core.clock import MAX_SET_BACK_MS
from scaleoutd.core.trust import RootPin
from scaleoutd.errors import PolicyDeniedError, VerificationError
from scaleoutd.ipc.control import Done, Operator, ResetTrust, must_record
from scaleoutd.runner.policyfile import read_policy
from scaleoutd.runner.room import Room
from scaleoutd.runner.rootfile import read_trust_root


def reset_trust(room: Room, command: ResetTrust, operator: Operator) -> Done:
    if operator.uid != 0:
        raise PolicyDeniedError(
            f"cannot reset the trust of {operator.name}: only root chooses whom a node trusts",
            code="command-refused",
            hint="Use sudo.",
        )
    root = _root_of(room, command) if command.root_sha256 else None
    if root is None and not command.clock:
        raise PolicyDeniedError("cannot reset nothing: neither a root nor the clock was named", code="command-refused")
    at = room.now()
    known = room.ledger.floors()
    if root is not None and RootPin.of(known) != root:
        raise _not_on_record(f"root {root.version} with digest {root.sha256}", known.root_sha256 or "none")
    if command.clock and known.time_ms > at.wall_ms + MAX_SET_BACK_MS:
        raise _not_on_record(f"a latest time up to {at.wall_ms}", str(known.time_ms))
    must_record(room.ledger.record, command, operator)
    room.reset(root=root, clock_to=at if command.clock else None)
    done = [f"root {root.version} with digest {root.sha256} counts from now on"] if root is not None else []
    done += ["the latest time on record is this host's clock from now on"] if command.clock else []
    return Done(True, "; ".join(done))


def _root_of(room: Room, command: ResetTrust) -> RootPin:
    """The root that lies there now; what the person looked at is what counts, not what lies there a moment later."""
    root = read_trust_root(Path(read_policy(room.policy_file).trust_root), room.now())
    found = RootPin(root.version, root.digest())
    if found != RootPin(command.root_version, command.root_sha256):
        raise VerificationError(
            f"cannot reset to root {command.root_version} with digest {command.root_sha256}: the runner finds root"
            f" {found.version} with digest {found.sha256}",
            code="trust-root-invalid",
            hint="See whether somebody replaced the file just now: `scaleoutctl trust show`.",
            facts={"expected": command.root_sha256, "found": found.sha256},
        )
    return found


def _not_on_record(wanted: str, found: str) -> PolicyDeniedError:
    return PolicyDeniedError(
        f"cannot reset: expected the ledger to have on record {wanted}, found {found}",
        code="command-refused",
        hint="`scaleoutctl trust reset` tells the ledger first, then the runner.",
    )
