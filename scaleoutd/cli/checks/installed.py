# SPDX-License-Identifier: Apache-2.0
"""An installed node: its configuration, users, folders, sockets, units, drop-ins, identity; and what its steps can reach."""

from __future__ import annotations

import grp
import os
import pwd
import stat
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

from scaleoutd.agent.nodefile import read_node_config
from scaleoutd.cli.certificates import belongs, load_certificates, not_after, not_before
from scaleoutd.cli.checks.finding import Finding, Subject, fail, ok, warn
from scaleoutd.cli.checks.reach import STEP_USER, step_ids, unreachable
from scaleoutd.cli.nodeenroll import read_enrolled
from scaleoutd.cli.nodestatus import UNITS, read_status, read_units
from scaleoutd.cli.place import Place
from scaleoutd.cli.policycommand import in_force, prepare
from scaleoutd.errors import ScaleoutError
from scaleoutd.runner.environments import resolve_environment

EXPIRY_DAYS = 30
SLOTS = 8
AS_ROOT = "sudo scaleoutctl doctor"
USERS = ("scaleoutd", "scaleoutd-runner", "scaleoutd-ledger", "scaleoutd-launch", *(f"scaleoutd-step-{n}" for n in range(SLOTS)))
GROUPS = ("scaleoutd-trail", "scaleoutd-admin", "scaleoutd-audit", "scaleoutd-data")
# Folder below the root: mode bits that must not be set, owner.
FOLDERS = {
    "etc/scaleoutd": (0o022, "root"),
    "etc/scaleoutd/identity": (0o077, "root"),
    "run/scaleoutd": (0o022, "root"),
    "var/lib/scaleoutd": (0o022, "root"),
    "var/lib/scaleoutd/agent": (0o077, "scaleoutd"),
    "var/lib/scaleoutd/runner": (0o066, "scaleoutd-runner"),
    "var/lib/scaleoutd/audit": (0o027, "scaleoutd-ledger"),
    "var/lib/scaleoutd/project": (0o027, "root"),
    **{f"var/lib/scaleoutd/scratch/{n}": (0o077, f"scaleoutd-step-{n}") for n in range(SLOTS)},
}
SOCKETS = {
    "runner.sock": "scaleoutd",
    "ledger.sock": "scaleoutd-trail",
    "step.sock": "scaleoutd-runner",
    **{f"{room}.control": "scaleoutd-admin" for room in UNITS},
}


def checks(subject: Subject, place: Place) -> Iterator[Finding]:
    parts: list[Callable[[Place], Iterator[Finding]]] = [configuration, users, folders, sockets, identity, policy, units]
    for part in parts:
        yield from part(place)
    yield from reached(subject)
    yield running(place)


def configuration(place: Place) -> Iterator[Finding]:
    try:
        loaded = read_node_config(place.etc)
    except ScaleoutError as exc:
        yield fail("configuration", f"{exc.message} [{exc.code}]", exc.hint or "scaleoutctl config check")
        return
    yield ok("configuration", f"{place.etc}/scaleoutd.yaml, for {loaded.config.api_url}")


def users(place: Place) -> Iterator[Finding]:
    known = {entry.pw_name for entry in pwd.getpwall()}
    groups = {entry.gr_name for entry in grp.getgrall()}
    missing = [*(name for name in USERS if name not in known), *(name for name in GROUPS if name not in groups)]
    if missing:
        yield fail("users", f"not there: {', '.join(missing)}", "systemd-sysusers")
    else:
        yield ok("users", f"{len(USERS)} users and {len(GROUPS)} groups are there")


def folders(place: Place) -> Iterator[Finding]:
    """A hardening tool that "repairs" owners and modes is the usual cause."""
    seen = 0
    for name, (forbidden, owner) in FOLDERS.items():
        path = place.root / name
        try:
            found = path.lstat()
        except PermissionError:
            continue
        except FileNotFoundError:
            yield fail("folders", f"{path} is not there", "systemd-tmpfiles --create")
            return
        seen += 1
        mode, uid = stat.S_IMODE(found.st_mode), _uid(owner)
        if not stat.S_ISDIR(found.st_mode) or mode & forbidden or (uid is not None and found.st_uid != uid):
            is_now = f"{_name(found.st_uid)}, mode {mode:04o}"
            fix = f"chown {owner} {path} && chmod {mode & ~forbidden:04o} {path}"
            yield fail("folders", f"{path} belongs to {is_now}; expected {owner} and no bit of {forbidden:04o}", fix)
            return
    yield ok("folders", f"owners and modes of {seen} folders are right")


def sockets(place: Place) -> Iterator[Finding]:
    """Root's, for one group each: a room that owned its socket could open it to all."""
    found = 0
    for name, group in SOCKETS.items():
        path = place.root / "run/scaleoutd" / name
        try:
            status = path.lstat()
        except OSError:
            continue
        found += 1
        gid = _gid(group)
        mode = stat.S_IMODE(status.st_mode)
        is_right = stat.S_ISSOCK(status.st_mode) and status.st_uid == 0 and mode & 0o117 == 0
        if not is_right or (gid is not None and status.st_gid != gid):
            what = (
                f"{path} belongs to {_name(status.st_uid)}:{_group(status.st_gid)}, mode {mode:04o}; expected root:{group} 0660"
            )
            yield fail("sockets", what, "systemctl restart scaleoutd.service")
            return
    if found:
        yield ok("sockets", f"{counted_of(found)} root's, each for its group alone")
    else:
        yield warn("sockets", "none is there: the node was not started since boot", "systemctl enable --now scaleoutd")


def identity(place: Place) -> Iterator[Finding]:
    """The pair as it lies there, and the enrollment."""
    if place.is_this_host and os.geteuid() != 0:
        yield warn("identity", "only root may look at the certificate and its key", AS_ROOT)
        return
    yield _certificate(place)
    try:
        enrolled = read_enrolled(place)
    except ScaleoutError as exc:
        yield fail("enrollment", exc.message, exc.hint)
        return
    token = place.identity / "token"
    if token.exists() and stat.S_IMODE(token.stat().st_mode) & 0o077:
        yield fail("enrollment", f"others may read {token}", f"chmod 600 {token}")
    elif enrolled is not None:
        yield ok("enrollment", f"as {enrolled.client_id} at {enrolled.api_url}")
    elif token.exists():
        yield ok("enrollment", f"a token lies at {token}")
    else:
        yield fail("enrollment", "this node is not enrolled", "scaleoutctl enroll --token-file FILE")


def _certificate(place: Place) -> Finding:
    certificate, key = place.identity / "client.pem", place.identity / "client.key"
    try:
        wants = read_node_config(place.etc).config.tls.client_certificate
    except ScaleoutError:
        wants = "required"
    if not certificate.exists() or not key.exists():
        if wants == "none":
            return ok("identity", "none, as scaleoutd.yaml says")
        return fail("identity", f"no certificate in {place.identity}", "scaleoutctl identity install CERTIFICATE --ca CA")
    try:
        pem = certificate.read_bytes()
        (first, *_) = load_certificates(pem, "the certificate")
        fits = belongs(pem, key.read_bytes())
    except ScaleoutError as exc:
        return fail("identity", exc.message, "scaleoutctl identity install CERTIFICATE")
    mode, now = stat.S_IMODE(key.stat().st_mode), datetime.now(UTC).replace(tzinfo=None)
    if mode & 0o077:
        return fail("identity", f"others may read {key} (mode {mode:04o})", f"chmod 600 {key}")
    if not fits:
        return fail("identity", f"{key} is not the key of {certificate}", "scaleoutctl identity install CERTIFICATE --key KEY")
    if now < not_before(first) or now > not_after(first):
        dates = f"{not_before(first):%Y-%m-%d %H:%M} to {not_after(first):%Y-%m-%d %H:%M} UTC, it is {now:%Y-%m-%d %H:%M}"
        return fail(
            "identity", f"the certificate is valid from {dates}", "scaleoutctl identity csr --name NAME, or see the clock"
        )
    if (not_after(first) - now).days < EXPIRY_DAYS:
        return warn("identity", f"the certificate ends at {not_after(first)} UTC", "scaleoutctl identity csr --name NAME")
    return ok("identity", f"{first.subject.rfc4514_string()}, until {not_after(first)} UTC, and the key fits")


def policy(place: Place) -> Iterator[Finding]:
    """What is in force, whether systemd's drop-ins are of it, and whether policy.yaml says something else by now."""
    try:
        found, states = in_force(place)
    except ScaleoutError as exc:
        yield fail("policy-in-force", f"{exc.message} [{exc.code}]", exc.hint or "scaleoutctl policy apply")
        return
    wrong = [f"{path} is {state}" for path, state in states.items() if state != "current"]
    if wrong:
        yield fail("drop-ins", f"{'; '.join(wrong)}: no step would start", "scaleoutctl policy apply")
    else:
        yield ok("drop-ins", f"as policy {found.digest()[:16]} asks for")
    try:
        waiting = prepare(place, place.policy).changes
    except ScaleoutError as exc:
        yield warn("policy-file", f"{exc.message}; the policy before stays in force", exc.hint or "scaleoutctl policy check")
        return
    if waiting and not wrong:
        yield warn("policy-file", f"{place.policy} is not what is in force", "scaleoutctl policy apply")
    elif not waiting:
        yield ok("policy-file", f"{place.policy} is in force")


def units(place: Place) -> Iterator[Finding]:
    shown = read_units(place)
    if not shown:
        yield warn("units", "systemd does not run here", "Nothing for an image; boot it.")
        return
    for room, unit in shown.items():
        name = UNITS[room]
        if unit.get("NeedDaemonReload") == "yes":
            yield fail("units", f"the files of {name} changed since systemd read them", "systemctl daemon-reload")
        elif unit.get("ActiveState") == "failed":
            told = unit.get("StatusText") or f"exit status {unit.get('ExecMainStatus')}"
            yield fail("units", f"{name} failed: {told}", f"journalctl -u {name} -n 20")
        elif unit.get("ActiveState") == "active":
            yield ok("units", f"{name}: {unit.get('StatusText') or 'active'}")
        else:
            yield warn("units", f"{name} is {unit.get('ActiveState') or 'unknown'}", "systemctl enable --now scaleoutd")


def reached(subject: Subject) -> Iterator[Finding]:
    """Each environment and data set, tried as a step's user."""
    ids = step_ids()
    if not subject.root or ids is None:
        yield warn("step-user", f"only root can try what {STEP_USER} can read", AS_ROOT)
        return
    for name, rule in sorted(subject.policy.environments.items()):
        try:
            found = resolve_environment(rule)
        except ScaleoutError as exc:
            yield fail("step-user", f"environments.{name}: {exc.message}", exc.hint)
            continue
        python = Path(os.path.realpath(rule.python))
        wanted = [python, *_imports(Path(rule.python)), *_imports(python)]
        yield _reached(f"environments.{name}", [Path(bind.source) for bind in found.binds], wanted, ids)
    for name, data in sorted(subject.policy.data_sets.items()):
        path = Path(data.path)
        if path.exists():
            yield _reached(f"data_sets.{name}", [path], [path, *_some(path)], ids)


def _reached(what: str, binds: list[Path], wanted: list[Path], ids: tuple[int, int]) -> Finding:
    for path in dict.fromkeys(wanted):
        above = [bind for bind in binds if path == bind or bind in path.parents]
        if not above:
            continue  # not shown to the step at all; `resolve_environment` knows what is needed
        bind = max(above, key=lambda item: len(item.parts))
        blocked = unreachable(bind, [path], ids)
        if blocked is not None:
            where, why = blocked
            mode = f"mode {stat.S_IMODE(where.stat().st_mode):04o}, owner {_name(where.stat().st_uid)}"
            fix = f"chmod o+r{'x' if where.is_dir() or os.access(where, os.X_OK) else ''} {where}"
            more = f"   (made under umask 077? chmod -R o+rX {bind})"
            return fail("step-user", f"{what}: {STEP_USER} cannot read {where} ({why}; {mode})", fix + more)
    return ok("step-user", f"{what}: {STEP_USER} reads it")


def _imports(python: Path) -> list[Path]:
    return sorted(python.parent.parent.glob("lib*/python3*/*-packages"))


def _some(path: Path) -> list[Path]:
    """The first files of a data set: enough to see a wrong umask, quick for millions."""
    found: list[Path] = []
    for folder, names, files in os.walk(path):
        names.sort()
        found += [Path(folder) / name for name in sorted(files)[:20]]
        if len(found) >= 100:
            break
    return [item for item in found if not item.is_symlink()]


def running(place: Place) -> Finding:
    """The rooms' own word, where this user may ask for it."""
    node = read_status(place)
    told = "; ".join(f"{room} {report['state']}" for room, report in node.rooms.items()) or "no room answers"
    if node.health == "healthy":
        return ok("node", f"healthy: {told}; outcomes were proven when the runner started")
    if node.health in ("stopped", "held"):
        fix = "scaleoutctl resume" if node.health == "held" else "systemctl enable --now scaleoutd"
        return warn("node", f"{node.health}: {told}", fix)
    return fail("node", f"unhealthy: {told}; {'; '.join(problem.what for problem in node.problems)}", "scaleoutctl status")


def counted_of(number: int) -> str:
    return f"{number} sockets are" if number != 1 else "1 socket is"


def _uid(name: str) -> int | None:
    try:
        return pwd.getpwnam(name).pw_uid
    except KeyError:
        return None


def _gid(name: str) -> int | None:
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        return None


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"


def _group(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return f"gid {gid}"
