# SPDX-License-Identifier: Apache-2.0
"""`scaleoutctl audit`: verifies and shows a trail, this node's or a copy of one, without a node and without a network.

Every command takes the folder of a trail, or --state-dir, or finds the node's: the installed one's where there is one.

Exit status 0: it verifies; 65: it does not, and the first wrong event is named.
"""

from __future__ import annotations

import functools
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from scaleoutd.cli import trailwalk
from scaleoutd.cli.nodestate import newest_node
from scaleoutd.cli.terminal import escape
from scaleoutd.cli.trailtail import TrailEnd, segments_of
from scaleoutd.core import event, trail
from scaleoutd.core.account import Account, Run
from scaleoutd.core.checkpoint import VerifierKey, complete_bytes, parse_key, split_notes
from scaleoutd.core.clock import utc_text
from scaleoutd.core.event import Event
from scaleoutd.core.trail import Verdict
from scaleoutd.durable import storage_errors
from scaleoutd.errors import ConfigError, FormatError

BROKEN = 65  # EX_DATAERR
MAX_KEY_BYTES = 4096
POLL_S = 0.3
_TORN = "{} ends in the middle of a line: a crash, or it is being written"

FILES = click.Path(exists=True, dir_okay=False, path_type=Path)
Command = Callable[..., None]


def of_trail(command: Command) -> Command:
    """The places that every command of a trail takes; it is called with `folder`, which is there."""

    @functools.wraps(command)
    def placed(folder: Path | None, state_dir: Path | None, **rest: Any) -> None:
        if folder is not None and state_dir is not None:
            raise click.UsageError("FOLDER and --state-dir name the same thing: give one of them")
        command(folder=folder or newest_node(state_dir) / "audit", **rest)

    taken = click.Path(exists=True, file_okay=False, path_type=Path)
    placed = click.argument("folder", type=taken, required=False)(placed)
    help_ = "the node's folder [the installed one, else the one that wrote last]"
    return click.option("--state-dir", type=taken, help=help_)(placed)


@click.group()
def audit() -> None:
    """Verify and read an audit trail, or a copy of one.

    \b
    Example:
      scaleoutctl audit verify copy-of-audit --key epoch-1.vkey
    """


@audit.command()
@of_trail
@click.option("--key", "keys", type=FILES, multiple=True, help="A checkpoint key that came another way (epoch-N.vkey).")
@click.option("--checkpoint", "witnessed", type=FILES, multiple=True, help="Checkpoints that somebody else has kept.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def verify(context: click.Context, folder: Path, keys: Sequence[Path], witnessed: Sequence[Path], as_json: bool) -> None:
    """Verify chain, tree, checkpoints and keys of the trail in FOLDER [this node's].

    \b
    Examples:
      scaleoutctl audit verify
      scaleoutctl audit verify copy-of-audit --key epoch-1.vkey --checkpoint kept.txt
    """
    context.exit(verify_and_print(folder, keys, witnessed, as_json=as_json))


@audit.command()
@of_trail
@click.option("--all", "everything", is_flag=True, help="Every event, one line each.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def show(folder: Path, everything: bool, as_json: bool) -> None:
    """Show what ran, on which code, with which model, and what left, of the trail in FOLDER [this node's].  Does not verify.

    \b
    Examples:
      scaleoutctl audit show
      scaleoutctl audit show copy-of-audit --all
    """
    if everything and not as_json:
        for item in events_of(folder):
            click.echo(line_of(item))
        return
    show_trail(folder, as_json=as_json)


@audit.command()
@of_trail
@click.option("-n", "--last", "count", type=click.IntRange(0), default=10, show_default=True, help="How many to begin with.")
@click.option("-f", "--follow", is_flag=True, help="Go on with what comes, until Ctrl-C.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object an event and line.")
def tail(folder: Path, count: int, follow: bool, as_json: bool) -> None:
    """Show the last events of the trail in FOLDER [this node's], one line each.  Does not verify.

    \b
    Example:
      scaleoutctl audit tail -f
    """
    end = TrailEnd(folder)
    for item in end.last(count):
        _print_event(item, as_json)
    while follow:
        for item in end.more():
            _print_event(item, as_json)
        time.sleep(POLL_S)


def _print_event(item: Event, as_json: bool) -> None:
    if as_json:
        head = {"sequence": item.sequence, "time_ms": item.time_ms, "room": item.room, "type": item.type}
        click.echo(json.dumps({**head, "body": item.body}))
    else:
        click.echo(line_of(item))
    sys.stdout.flush()


def verify_and_print(folder: Path, keys: Sequence[Path] = (), witnessed: Sequence[Path] = (), *, as_json: bool = False) -> int:
    """Verifies and says so; the exit status."""
    with storage_errors(f"read the trail in {folder}"):
        verdict, warnings = verify_folder(folder, keys, witnessed)
    if as_json:
        click.echo(json.dumps({"ok": verdict.ok, **asdict(verdict), "warnings": warnings}))
    else:
        _print(verdict, warnings)
    return 0 if verdict.ok else BROKEN


def verify_folder(folder: Path, keys: Sequence[Path] = (), witnessed: Sequence[Path] = ()) -> tuple[Verdict, list[str]]:
    """The verdict on a folder, and what a reader should know beside it."""
    warnings: list[str] = []
    trusted = [_read_key(path) for path in keys]
    beside = [_read_key(path) for path in sorted((folder / "keys").glob("epoch-*.vkey"), key=_number_of)]
    if not trusted:
        warnings.append("no --key was given: the trail's own first key was believed")
    # Checkpoints first: a node that is running may append to both, and a checkpoint never comes before its events.
    notes = _notes(folder / "checkpoints", warnings)
    for path in witnessed:
        notes += _notes(path, warnings)
    walk = trail.Walk(notes, trusted or beside[:1], [*trusted, *beside])

    def torn(path: Path) -> None:
        warnings.append(_TORN.format(path.name))

    parts = trailwalk.stretches(_segments(folder), torn)
    verdict = walk.judge(lambda: trailwalk.walk(walk, parts))
    if verdict.ok and verdict.signed_size < verdict.size:
        warnings.append(f"{verdict.size - verdict.signed_size} events at the end are not under a signature yet")
    return verdict, warnings


def events_of(folder: Path) -> Iterator[Event]:
    """The events that can be read; FormatError for one that cannot."""
    for line in _lines(folder, []):
        yield event.parse(line)


def show_trail(folder: Path, *, as_json: bool = False) -> None:
    """The account of the trail."""
    account = Account()
    for item in events_of(folder):
        account.take(item)
    if as_json:
        told = {
            "runs": [run.facts() for run in account.runs.values()],
            "notable": [{"type": item.type, "time_ms": item.time_ms, "room": item.room, **item.body} for item in account.notable],
            "counts": account.counts,
        }
        click.echo(json.dumps(told))
        return
    notable = list(account.notable)
    for run in account.runs.values():
        while notable and notable[0].sequence < run.first_sequence:
            click.echo(line_of(notable.pop(0)))
        _print_run(run)
    for item in notable:
        click.echo(line_of(item))


def line_of(item: Event) -> str:
    """One event as one line, harmless on a terminal."""
    body = " ".join(f"{key}={_short(value)}" for key, value in item.body.items())
    return escape(f"{utc_text(item.time_ms)} {item.sequence:>6} {item.room:<6} {item.type:<20} {body}")


# --- print --------------------------------------------------------------------------------------------------------


def _print(verdict: Verdict, warnings: Sequence[str]) -> None:
    if verdict.fault is None:
        click.secho(
            f"the trail verifies: {verdict.size} events, {verdict.signed_size} of them signed,"
            f" {verdict.checkpoints} checkpoints, {verdict.epochs} epoch keys",
            fg="green",
        )
        click.echo(f"  trail {escape(verdict.origin)}, root {verdict.root}")
        if verdict.last_time_ms:
            click.echo(f"  last event {utc_text(verdict.last_time_ms)}")
    else:
        click.secho(
            f"the trail does not verify: {verdict.fault.kind} at sequence {verdict.fault.sequence}:"
            f" {escape(verdict.fault.message)} [trail-broken]",
            fg="red",
        )
        click.echo(f"  {min(verdict.signed_size, verdict.fault.sequence)} events before it verify under a signature")
    for warning in warnings:
        click.echo(f"  note: {warning}")


def _print_run(run: Run) -> None:
    started, ended, left = run.started, run.ended, run.left
    click.echo(escape(f"{utc_text(run.time_ms)} run {run.run}: {started.get('task', 'not started')}"))
    if started:
        code = f"{started.get('project')} version {started.get('manifest_version')}"
        click.echo(escape(f"  code   {code}, manifest {_short(started.get('manifest_sha256'))}"))
        click.echo(escape(f"  model  {_short(started.get('model_sha256'))}, round {started.get('round_id')}"))
        click.echo(escape(f"  ran    {_short(started.get('command'))}, environment {_short(started.get('environment'))}"))
    if ended:
        how = ended.get("code") or f"{ended.get('ended')} {ended.get('exit_status', ended.get('signal', ''))}"
        click.echo(escape(f"  ended  {how}, {ended.get('wall_ms', 0)} ms, denied calls {_short(ended.get('denied', {}))}"))
    if left:
        click.echo(
            escape(
                f"  left   {left.get('kind')}, {left.get('size_bytes')} bytes, sha256 {_short(left.get('sha256'))},"
                f" to {left.get('destination')}: {run.delivery}"
            )
        )
    else:
        click.echo("  left   nothing")
    for failure in run.failures:
        click.secho(escape(f"  failed {failure['event']} {failure.get('code', '')}: {failure.get('message', '')}"), fg="red")


def _short(value: object) -> str:
    if isinstance(value, str):
        return value[:12] + "…" if len(value) == 64 else value
    if isinstance(value, list):
        return "[" + " ".join(_short(item) for item in value) + "]"
    if isinstance(value, dict):
        return "{" + " ".join(f"{key}:{_short(item)}" for key, item in value.items()) + "}"
    return str(value)


# --- files --------------------------------------------------------------------------------------------------------


def _segments(folder: Path) -> list[Path]:
    segments = segments_of(folder)
    if not segments and not (folder / "checkpoints").exists():
        raise ConfigError(
            f"cannot read {folder}: it is no audit trail, it has no segment NNNNNNNN.jsonl",
            code="config-missing",
            hint="Name the folder of the ledger or a copy of it.",
        )
    return segments


def _lines(folder: Path, warnings: list[str]) -> Iterator[bytes]:
    for path in _segments(folder):
        with storage_errors(f"read {path}"), path.open("rb") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    warnings.append(_TORN.format(path.name))
                    break
                yield line[:-1]


def _notes(path: Path, warnings: list[str]) -> list[bytes]:
    if not path.exists():
        return []
    with storage_errors(f"read {path}"):
        data = path.read_bytes()
    if not data.endswith(b"\n\n") and data.count(b"\n\n") == 1:
        data += b"\n"  # a single note as its file, without the empty line that divides notes
    end = complete_bytes(data)
    if end < len(data):
        warnings.append(f"{path.name} ends in the middle of a checkpoint: a crash, or it is being written")
    return list(split_notes(data[:end]))


def _read_key(path: Path) -> VerifierKey:
    with storage_errors(f"read {path}"):
        data = path.read_bytes()[:MAX_KEY_BYTES]
    try:
        return parse_key(data.decode())
    except UnicodeDecodeError as exc:
        raise FormatError(f"cannot read the key {path}: it is not text", code="key-invalid") from exc


def _number_of(path: Path) -> int:
    digits = path.stem.removeprefix("epoch-")
    return int(digits) if digits.isdigit() else 0
