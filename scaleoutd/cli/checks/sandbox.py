# SPDX-License-Identifier: Apache-2.0
"""Policy, trust root and project as a node would take them, and the sandbox itself: proven by acts that must fail."""

from __future__ import annotations

import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from scaleoutd.cli.checks.finding import Finding, Subject, fail, ok, warn
from scaleoutd.cli.instance import own_instance
from scaleoutd.cli.signing import now, read_folder, read_unverified
from scaleoutd.core.clock import Floors
from scaleoutd.core.plan import OUTCOMES, Bind, Enforcement, Outcome, SandboxPlan
from scaleoutd.errors import ConfigError, KernelSupportError, ScaleoutError
from scaleoutd.ipc.step import Probe, Probed
from scaleoutd.runner.environments import resolve_environment
from scaleoutd.runner.rootfile import read_trust_root
from scaleoutd.runner.tree import Tree
from scaleoutd.runner.verify import check_project, prove, refuse

PROBE_S = 120.0
Backend = Literal["namespaces", "inner"]


def policy_checks(subject: Subject) -> Iterator[Finding]:
    if subject.policy_file is not None:
        yield ok("policy", f"{subject.policy_file} can be read, sha256 {subject.policy.digest()}")
        yield _proof(subject)
    elif subject.project is not None:
        yield _folder(subject.project)


def _proof(subject: Subject) -> Finding:
    """The project is what was signed; floors are the business of a run."""
    folder, at = Path(subject.policy.project.path), now()
    try:
        root = read_trust_root(Path(subject.policy.trust_root), at)
        proven = prove(folder, root, subject.policy, Floors(), at)
        refuse(check_project(proven))
    except ScaleoutError as exc:
        return fail("project", f"{exc.message} [{exc.code}]", exc.hint or f"scaleoutctl why {exc.code}")
    manifest = proven.manifest.manifest
    return ok("project", f"{manifest.project} version {manifest.version} is exactly what was signed")


def _folder(project: Path) -> Finding:
    try:
        with Tree(project) as tree:
            files = read_folder(tree).files
            found = read_unverified(tree)
    except ScaleoutError as exc:
        return fail("project", f"{exc.message} [{exc.code}]", exc.hint or f"scaleoutctl why {exc.code}")
    if found is not None and not found[1].development:
        return warn(
            "project",
            f"{project} was signed for production (version {found[1].version}); the development mode does not sign over it",
            "Give --policy with its trust root, or work on a copy without scaleout.manifest.json.",
        )
    return ok("project", f"{project} has {len(files)} files and can be signed")


def probe_checks(subject: Subject) -> Iterator[Finding]:
    """One launcher, one probe, a line for each outcome."""
    demanded = subject.policy.outcomes
    backend: Backend = "inner" if subject.policy.backend == "inner" else "namespaces"
    try:
        probed = prove_outcomes(subject, backend, demanded)
    except ScaleoutError as exc:
        if not (subject.development and isinstance(exc, KernelSupportError)):
            yield fail("sandbox", f"{exc.message} [{exc.code}]", exc.hint or "See the lines above for what this host lacks.")
            return
        yield warn("sandbox", f"{exc.message}; the development mode goes on with what is left", exc.hint)
        yield from _without_namespaces(subject)
        return
    yield ok("sandbox", f"backend {backend}, Landlock ABI {probed.landlock_abi}, filter {probed.filter_sha256[:12]}…")
    for item in probed.outcomes:
        yield _outcome(item, item.name in demanded, subject.development)


def _without_namespaces(subject: Subject) -> Iterator[Finding]:
    """What the inner stage alone holds: nothing is demanded, so that every outcome is shown."""
    try:
        probed = prove_outcomes(subject, "inner", ())
    except ScaleoutError as exc:
        yield fail("sandbox-inner", f"{exc.message} [{exc.code}]", exc.hint or "Run it as root, or on another host.")
        return
    for item in probed.outcomes:
        yield _outcome(item, True, True)


def _outcome(item: Enforcement, demanded: bool, development: bool) -> Finding:
    held = ", ".join(item.providers) or "nothing"
    if item.status in ("proven", "enforced"):
        return ok(f"outcome {item.name}", f"{item.status}, held by {held}")
    told = f"{item.status}; on this host it would be held by {held}"
    if demanded and not development:
        return fail(f"outcome {item.name}", told, "Run the node as root, or allow user namespaces.")
    return warn(f"outcome {item.name}", told, "Run it as root or allow user namespaces, or take it off outcomes: in the policy.")


def prove_outcomes(subject: Subject, backend: Backend, demanded: tuple[Outcome, ...] = OUTCOMES) -> Probed:
    """Starts a launcher and lets it prove; raises what a node's start would raise."""
    name = next(iter(sorted(subject.policy.environments)), None)
    if name is None:
        raise ConfigError("cannot prove the sandbox: the policy names no environment", hint="Name one under environments:.")
    environment = resolve_environment(subject.policy.environments[name])
    folder = Path(tempfile.gettempdir()) / f"scaleoutd-doctor-{secrets.token_hex(8)}"
    binds = environment.binds
    if backend == "inner":  # there is no view: paths are the host's
        binds = tuple(Bind(bind.source, bind.source, bind.executable) for bind in binds)
    plan = SandboxPlan(
        run="doctor",
        backend=backend,
        slot=7,  # the runner's last one: a node of this user takes the first
        command=(environment.python,),
        cwd="/scratch" if backend == "namespaces" else str(folder / "scratch"),
        environment={"PATH": "/usr/bin:/bin"},
        binds=binds,
        scratch=str(folder / "scratch"),
        limits=subject.policy.limits.of_run(),
        outcomes=demanded,
        devices=subject.policy.devices,
    )
    try:
        folder.mkdir(mode=0o711)
        with own_instance() as instance:
            return instance.channel.ask(Probe(plan), Probed, timeout_s=PROBE_S)
    except OSError as exc:
        raise ConfigError(
            f"cannot prove the sandbox: {exc.strerror} ({exc.filename})", hint="Set TMPDIR to a writable folder."
        ) from exc
    finally:
        shutil.rmtree(folder, ignore_errors=True)
