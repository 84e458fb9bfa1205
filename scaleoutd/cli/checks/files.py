# SPDX-License-Identifier: Apache-2.0
"""Files and folders: mounts without exec, what the step's uid cannot reach, space, the client certificate."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.x509 import load_der_x509_certificate

from scaleoutd.agent.der import certificate_facts, first_of_pem
from scaleoutd.cli.certificates import UNREADABLE
from scaleoutd.cli.checks.budget import budget
from scaleoutd.cli.checks.finding import Finding, Subject, fail, ok, warn
from scaleoutd.cli.measures import counted, size
from scaleoutd.core.plan import STEP_UID_BASE
from scaleoutd.core.policy import MIB
from scaleoutd.errors import ScaleoutError
from scaleoutd.runner.environments import ResolvedEnvironment, resolve_environment

EXPIRY_DAYS = 30
LEAST_FREE_BYTES = 256 * MIB
LEAST_FREE_FILES = 1000
MAX_SAMPLED = 2000  # files of a data set that are looked at


def checks(subject: Subject) -> Iterator[Finding]:
    if subject.installed:  # installed.py looks at the rest, as the node's own users
        yield noexec_of_node(subject)
        yield disk(subject)
        yield from budget(subject)
        return
    yield noexec(subject)
    yield state_folder(subject)
    yield interpreter(subject)
    yield from data_sets(subject)
    yield disk(subject)
    yield from budget(subject)
    if subject.certificate or subject.key:
        yield certificate(subject)


def existing(path: Path) -> Path:
    """`path`, or the nearest folder above it that this user can see."""
    while not os.access(path, os.F_OK):  # Path.exists raises where a folder above may not be entered
        path = path.parent
    return path


def noexec(subject: Subject) -> Finding:
    """The shared temporary folders may be noexec: a step has its own.  Interpreter and state folder may not."""
    python = Path(subject.interpreter)
    if python.exists() and _flags(Path(os.path.realpath(python))) & os.ST_NOEXEC:
        where = _mount_of(Path(os.path.realpath(python)))
        return fail(
            "noexec",
            f"the interpreter {python} lies on {where}, mounted noexec",
            f"mount -o remount,exec {where}   (or name another)",
        )
    environment = python.parent.parent
    if python.exists() and _flags(environment) & os.ST_NOEXEC:
        where = _mount_of(environment)
        return fail(
            "noexec",
            f"the environment {environment} lies on {where}, mounted noexec: its compiled modules cannot be loaded",
            f"mount -o remount,exec {where}   (or make the virtual environment elsewhere)",
        )
    state = existing(subject.state)
    if _flags(state) & os.ST_NOEXEC:
        where = _mount_of(state)
        return warn(
            "noexec",
            f"the state folder {subject.state} lies on {where}, mounted noexec: programs and compiled modules of a project"
            " cannot be executed, Python files can",
            "Name another folder with --state-dir, if the project has such files.",
        )
    shared = [path for path in ("/tmp", "/var/tmp", "/dev/shm") if _flags(Path(path)) & os.ST_NOEXEC]  # noqa: S108
    told = f"; {', '.join(shared)} without exec does not matter, a step has its own" if shared else ""
    return ok("noexec", f"interpreter and state folder may be executed{told}")


def noexec_of_node(subject: Subject) -> Finding:
    """The step's unit lifts noexec for the store and the environments (ExecPaths=); our own programs must be executable."""
    ours = Path("/usr/lib/scaleoutd")
    if ours.is_dir() and _flags(ours) & os.ST_NOEXEC:
        return fail("noexec", f"{ours} lies on {_mount_of(ours)}, mounted noexec", f"mount -o remount,exec {_mount_of(ours)}")
    looked = ("/tmp", "/var/tmp", "/dev/shm", "/home", "/var", str(existing(subject.state)))  # noqa: S108
    lifted = [path for path in dict.fromkeys(looked) if _flags(Path(path)) & os.ST_NOEXEC]
    return ok("noexec", f"{', '.join(lifted) or 'nothing'} mounted noexec, which the units of a node do not mind")


def _flags(path: Path) -> int:
    try:
        return os.statvfs(path).f_flag
    except OSError:
        return 0


def _mount_of(path: Path) -> Path:
    while not path.is_mount():
        path = path.parent
    return path


def state_folder(subject: Subject) -> Finding:
    folder = existing(subject.state)
    if _flags(folder) & os.ST_RDONLY:
        return fail("state-folder", f"{folder} is on a read-only file system", "Name a writable folder with --state-dir.")
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        return fail(
            "state-folder", f"{folder} cannot be written by this user", f"chown {os.geteuid()} {folder}   (or --state-dir)"
        )
    for room in ("runner", "agent", "audit"):
        path = subject.state / room
        if path.is_dir() and path.stat().st_uid != os.geteuid():
            return fail(
                "state-folder",
                f"{path} belongs to uid {path.stat().st_uid}, expected {os.geteuid()}",
                f"Run it as that user, or chown {path}.",
            )
    return ok("state-folder", f"{subject.state} can be written")


def interpreter(subject: Subject) -> Finding:
    """The environment, and whether the uid that a step gets can reach the interpreter and its packages."""
    name = next(iter(sorted(subject.policy.environments)), None)
    if name is None:
        return fail("interpreter", "the policy names no environment", "Name one under environments: in the policy.")
    try:
        found = resolve_environment(subject.policy.environments[name])
    except ScaleoutError as exc:
        return fail("interpreter", exc.message, exc.hint)
    for path in _roots(found):
        blocked = blocked_folder(path, _bind_above(path, found, subject), subject.root)
        if blocked:
            return fail(
                "interpreter",
                f"the step, which runs as {_step_user(subject)}, cannot reach {path}: {_described(blocked)}",
                f"chmod o+rx {blocked}   (in a virtual environment made under umask 077: chmod -R o+rX {path.parent})",
            )
    return ok("interpreter", f"{found.python} and its packages can be reached by the step")


def _roots(found: ResolvedEnvironment) -> list[Path]:
    """The interpreter, and each folder from which it imports."""
    python = Path(os.path.realpath(found.python))
    prefixes = {Path(found.python).parent.parent, python.parent.parent}
    return [python, *sorted(path for prefix in prefixes for path in prefix.glob("lib*/python3*/*-packages"))]


def _bind_above(path: Path, found: ResolvedEnvironment, subject: Subject) -> Path:
    """Where the walk begins: with a mount view at the bind that shows the path (what is above was opened by root)."""
    if subject.policy.backend == "inner":
        return Path("/")
    above = [Path(bind.source) for bind in found.binds if path == Path(bind.source) or path.is_relative_to(bind.source)]
    return max(above, key=lambda bind: len(bind.parts), default=Path("/"))


def blocked_folder(path: Path, start: Path, root: bool) -> Path | None:
    """The first thing from `start` to `path` that the step's uid cannot enter or read, None when it can."""
    below = path.relative_to(start).parts
    current = start
    for part in (None, *below):
        current = current if part is None else current / part
        if current.is_symlink():
            continue
        try:
            found = current.stat()
        except OSError:
            return current
        if not _may_read(current, found, root):
            return current
    return None


def _may_read(path: Path, found: os.stat_result, root: bool) -> bool:
    wanted = 0o5 if stat.S_ISDIR(found.st_mode) or found.st_mode & 0o111 else 0o4
    if root:  # the step gets a uid of its own, that owns nothing and is in no group
        return found.st_mode & wanted == wanted
    return os.access(path, os.R_OK | (os.X_OK if wanted & 1 else 0))


def _step_user(subject: Subject) -> str:
    return f"uid {STEP_UID_BASE}" if subject.root else f"uid {os.geteuid()}"


def _described(path: Path) -> str:
    try:
        found = path.stat()
    except OSError as exc:
        return f"{path} ({exc.strerror})"
    kind = "folder" if stat.S_ISDIR(found.st_mode) else "file"
    return f"{kind} {path} has mode {stat.S_IMODE(found.st_mode):04o} and owner uid {found.st_uid}"


def data_sets(subject: Subject) -> Iterator[Finding]:
    for name, rule in sorted(subject.policy.data_sets.items()):
        path = Path(rule.path)
        if not os.access(path, os.F_OK):
            yield fail(
                "data-set", f"{name}: there is nothing at {path}", f"Correct data_sets.{name}.path in the policy, or mount it."
            )
            continue
        start = Path("/") if subject.policy.backend == "inner" else path
        blocked = blocked_folder(path, start, subject.root) or _blocked_inside(path, subject.root)
        if blocked:
            yield fail(
                "data-set",
                f"{name}: the step, {_step_user(subject)}, cannot read it: {_described(blocked)}",
                f"chmod o+rX {blocked}",
            )
        else:
            yield ok("data-set", f"{name}: {path} can be read by the step")


def _blocked_inside(path: Path, root: bool) -> Path | None:
    seen = 0
    for folder, names, files in os.walk(path):
        for name in (*names, *files):
            item = Path(folder) / name
            seen += 1
            if seen > MAX_SAMPLED:
                return None
            if not item.is_symlink() and not _may_read(item, item.stat(), root):
                return item
    return None


def disk(subject: Subject) -> Finding:
    folder = existing(subject.state)
    found = os.statvfs(folder)
    free = found.f_bavail * found.f_frsize
    limits = subject.policy.limits
    wanted = limits.model_bytes + limits.scratch_bytes + limits.output_bytes
    if found.f_files and found.f_favail < LEAST_FREE_FILES:
        return fail(
            "disk",
            f"{counted(found.f_favail, 'free inode')} on the file system of {folder}",
            f"Remove files there: df -i {folder}",
        )
    if free < LEAST_FREE_BYTES:
        return fail("disk", f"{size(free)} free for {subject.state}", f"Free space: df -h {folder}   (or --state-dir)")
    if free < wanted:
        return warn(
            "disk",
            f"{size(free)} free for {subject.state}; the limits of one run allow {size(wanted)}",
            "Lower limits.scratch_bytes, model_bytes or output_bytes in the policy, or free space.",
        )
    return ok("disk", f"{size(free)} free, the limits of one run allow {size(wanted)}")


def certificate(subject: Subject) -> Finding:
    """Dates, and that certificate and key are a pair."""
    if subject.certificate is None or subject.key is None:
        return fail("certificate", "only one of --cert and --key was given", "Give both.")
    try:
        der = first_of_pem(subject.certificate.read_bytes())
        facts = certificate_facts(der)
        mode = stat.S_IMODE(subject.key.stat().st_mode)
        key = serialization.load_pem_private_key(subject.key.read_bytes(), None)
        ours = key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
        theirs = load_der_x509_certificate(der).public_key()
        named = theirs.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    except ScaleoutError as exc:
        return fail("certificate", exc.message, exc.hint or "Give a PEM certificate.")
    except (OSError, *UNREADABLE) as exc:
        return fail("certificate", f"certificate or key cannot be read: {exc}", "Give PEM files; the key without a passphrase.")
    if mode & 0o077:
        return fail("certificate", f"others may read the key {subject.key} (mode {mode:04o})", f"chmod 600 {subject.key}")
    if ours != named:
        return fail(
            "certificate", f"{subject.key} is not the key of {subject.certificate}", "Give the pair that was issued together."
        )
    now = datetime.fromtimestamp(time.time(), UTC).replace(tzinfo=None)
    left = facts.not_after - now
    if now < facts.not_before:
        return fail("certificate", f"valid from {facts.not_before} UTC, it is {now:%Y-%m-%d %H:%M}", "See the clock; else wait.")
    if left.total_seconds() <= 0:
        return fail("certificate", f"expired at {facts.not_after} UTC", "Ask its issuer for a new one for the same key.")
    if left.days < EXPIRY_DAYS:
        return warn(
            "certificate", f"expires in {counted(left.days, 'day')}, at {facts.not_after} UTC", "Renew it with its issuer."
        )
    return ok("certificate", f"{facts.subject}, until {facts.not_after} UTC, and the key fits")
