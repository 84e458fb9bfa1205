# SPDX-License-Identifier: Apache-2.0
"""`scaleoutctl trust reset`: breaks the chain of trust roots on a node, or lowers a wrong latest time; root's, and on record.

On an installed node root tells the ledger, then the runner, which follows what the ledger has (runner/resetting.py).  A node in
the foreground has no such sockets: with `--state-dir` its ledger is started for this one record, and must not run otherwise.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from scaleoutd.cli.diff import fingerprint
from scaleoutd.cli.foreground import Folders
from scaleoutd.cli.place import JSON_OPTION, ROOT_OPTION, Place, must_be_root
from scaleoutd.cli.signing import now
from scaleoutd.cli.terminal import escape, say
from scaleoutd.cli.workplace import LedgerDoor, ledger_room, operator
from scaleoutd.core.policy import MAX_POLICY_BYTES, Policy, parse_policy
from scaleoutd.core.records import decode
from scaleoutd.core.trust import RootPin, TrustRoot
from scaleoutd.durable import storage_errors
from scaleoutd.errors import ConfigError, FormatError, StorageError
from scaleoutd.ipc.control import Done, ResetTrust, call
from scaleoutd.ipc.ledger_client import LedgerClient
from scaleoutd.ipc.named import NamedClientDoor
from scaleoutd.ledger.recorder import LOWER_FLOOR
from scaleoutd.runner.room import reset_floors
from scaleoutd.runner.rootfile import read_trust_root


@dataclass(frozen=True)
class Wanted:
    reason: str
    root: TrustRoot | None
    clock: bool


@click.command("reset")
@click.option("--reason", required=True, metavar="TEXT", help="Why; it goes on record.")
@click.option("--clock", is_flag=True, help="Lower the latest time on record to this clock, instead of the root.")
@click.option(
    "--state-dir", type=click.Path(file_okay=False, exists=True, path_type=Path), help="State of a node in the foreground."
)
@ROOT_OPTION
@JSON_OPTION
def trust_reset(reason: str, clock: bool, state_dir: Path | None, root: Path, as_json: bool) -> None:
    """Let the trust root that lies at the policy's trust_root: count, although it does not follow the one accepted before.

    Install it first and read its fingerprint out to its owner.  From then on its chain counts.

    \b
    Examples:
      sudo scaleoutctl trust reset --reason "root key lost; new root agreed on by phone with K. Berg"
      sudo scaleoutctl trust reset --clock --reason "clock was a year ahead after the battery change"
    """
    try:
        decode(ResetTrust, {"reason": reason}, "reset")
    except FormatError as exc:
        raise click.UsageError(f"--reason: {exc.message}") from exc
    if state_dir is not None:
        wanted = _wanted(_policy_of(state_dir / "policy.lock"), Place(), reason, clock)
        text = _reset_here(state_dir, wanted)
    else:
        place = Place.of(root)
        wanted = _wanted(_policy_of(place.lock), place, reason, clock)
        text = _reset_node(place, wanted)
    if as_json:
        found = wanted.root
        told = {"root_version": found.version, "root_sha256": found.digest()} if found else {}
        click.echo(json.dumps({"changed": True, "clock": clock, **told}))
        return
    say(escape(text))
    if wanted.root is not None:
        say(f"fingerprint {fingerprint(wanted.root.digest())}")


def _wanted(policy: Policy, place: Place, reason: str, clock: bool) -> Wanted:
    return Wanted(reason, None if clock else read_trust_root(place.inside(policy.trust_root), now()), clock)


def _policy_of(path: Path) -> Policy:
    with storage_errors(f"read the policy {path}"):
        try:
            data = path.read_bytes()[: MAX_POLICY_BYTES + 1]
        except FileNotFoundError as exc:
            raise ConfigError(
                f"cannot reset the trust of a node: expected its policy in force at {path}, found none",
                code="config-missing",
                hint="An installed node: `scaleoutctl policy apply`. One in the foreground: name its state with --state-dir DIR.",
            ) from exc
    return parse_policy(data)


def _reset_node(place: Place, wanted: Wanted) -> str:
    """The ledger takes it from root at its socket, the runner follows what the ledger has."""
    must_be_root(place, "reset the trust of a node")
    ledger = LedgerClient(NamedClientDoor(place.root / "run/scaleoutd"), "cli")
    try:
        _record(ledger, wanted)
    finally:
        ledger.close()
    named = (wanted.root.version, wanted.root.digest()) if wanted.root else (0, "")
    answer = call(str(place.control("runner")), "runner", ResetTrust(wanted.reason, *named, clock=wanted.clock))
    if not isinstance(answer, Done):
        raise StorageError("cannot understand the runner: it gave another answer")
    return answer.text


def _reset_here(state_dir: Path, wanted: Wanted) -> str:
    folders = Folders(state_dir)
    floors_file = folders.runner / "floors.json"
    rooms = ledger_room(folders)
    try:
        rooms.start()
        _record(LedgerClient(LedgerDoor(rooms), "cli"), wanted)
        if wanted.root is None:
            reset_floors(floors_file, clock_to=now())
            return "the latest time on record is this host's clock from now on"
        pin = RootPin(wanted.root.version, wanted.root.digest())
        reset_floors(floors_file, root=pin)
        return f"root {pin.version} with digest {pin.sha256} counts from now on"
    finally:
        rooms.stop()


def _record(ledger: LedgerClient, wanted: Wanted) -> None:
    who: dict[str, Any] = {"operator": operator(), "reason": wanted.reason}
    if wanted.root is None:
        ledger.record("operator-command", command=LOWER_FLOOR, **who)
        return
    known = ledger.floors()
    before = {"previous_version": known.root_version, "previous_sha256": known.root_sha256} if known.root_sha256 else {}
    ledger.record("trust-root-reset", root_version=wanted.root.version, root_sha256=wanted.root.digest(), **before, **who)
