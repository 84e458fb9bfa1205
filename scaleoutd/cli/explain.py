# SPDX-License-Identifier: Apache-2.0
"""`scaleoutctl explain`: what a step will see, may do and may send, in words for people who do not program.

Nothing is started, signed or written.  Lines are built from explanation.py; its golden tests are the wording's owner.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import click

from scaleoutd.cli.explanation import Explanation, HostFacts, Subject, differences, explanation_of, grant_for, plan_of
from scaleoutd.cli.foreground import default_state
from scaleoutd.cli.measures import counted, duration, size
from scaleoutd.cli.signing import Terms, make_manifest, now, read_folder, read_unverified
from scaleoutd.cli.start import development_python, find_project, parse_data_sets
from scaleoutd.cli.terminal import escape
from scaleoutd.core import strictjson
from scaleoutd.core.clock import Floors, Now, utc_text
from scaleoutd.core.manifest import Expected, VerifiedManifest, manifest_payload
from scaleoutd.core.plan import Outcome, Task
from scaleoutd.core.policy import Policy, development_policy, parse_policy_yaml
from scaleoutd.durable import storage_errors
from scaleoutd.errors import ScaleoutError, VerificationError
from scaleoutd.runner.environments import check_data_set, resolve_environment
from scaleoutd.runner.rootfile import read_trust_root
from scaleoutd.runner.tree import Tree
from scaleoutd.runner.verify import check_project, prove, refuse
from scaleoutd.step import seccomp, syscalls
from scaleoutd.step.digest import sha256_hex

WORDS: dict[Outcome, str] = {
    "no-socket-out": "It cannot reach a network or a program outside: nothing is sent, nothing is fetched.",
    "no-signal-out": "It cannot stop, watch or change another program of this computer.",
    "no-write-outside": "It cannot change a file outside its own folder.",
    "no-read-outside": "It cannot read a file that is not listed above.",
    "no-foreign-device": "It cannot use a device: no camera, no disk, no terminal.",
    "no-survivor": "Nothing of it goes on running after it ended.",
}

ACTS: dict[str, str] = {
    "train": "A program trains a model with what lies on this computer;",
    "validate": "A program measures how good a model is on what lies on this computer;",
    "predict": "A program applies a model to what lies on this computer;",
}


@click.command("explain")
@click.argument("task", type=click.Choice(["train", "validate", "predict"]), default="train")
@click.option("--project", type=click.Path(path_type=Path, file_okay=False), help="project folder [this one, or ./client]")
@click.option("--policy", type=click.Path(path_type=Path, dir_okay=False), help="policy.yaml; without it: development mode")
@click.option("--data", "data_sets", multiple=True, metavar="ID=PATH", help="a data set for the step (development mode)")
@click.option("--diff", "other", type=click.Path(path_type=Path, dir_okay=False), metavar="POLICY", help="show what it changes")
@click.option("--state-dir", type=click.Path(path_type=Path, file_okay=False), help="where state and trail are kept")
@click.option("--json", "as_json", is_flag=True, help="one JSON object on standard output")
def explain(
    task: Task,
    project: Path | None,
    policy: Path | None,
    data_sets: tuple[str, ...],
    other: Path | None,
    state_dir: Path | None,
    as_json: bool,
) -> int:
    """Say what TASK will see, may do and may send, before anything runs.  Starts, signs and writes nothing.

    \b
    Examples:
      scaleoutctl explain train
      scaleoutctl explain train --policy policy.yaml --diff policy-new.yaml
    """
    host = host_facts()
    first = explain_project(task, project, policy, parse_data_sets(data_sets), state_dir, host)
    if other is not None:
        second = explain_project(task, project, other, {}, state_dir, host)
        return _print_difference(first, second, as_json)
    if as_json:
        click.echo(json.dumps(first.as_json(), indent=2))
    else:
        for line in lines_of(first):
            click.echo(escape(line))
    return 77 if first.refusals else 0


def explain_project(
    task: Task, project: Path | None, policy_file: Path | None, data_sets: dict[str, str], state_dir: Path | None, host: HostFacts
) -> Explanation:
    """Reads policy, project and environment as they are; what would be refused is kept and told."""
    at = now()
    refusals: list[ScaleoutError] = []
    if policy_file is None:
        policy, verified = _development(find_project(project), data_sets, at)
        proven = False
    else:
        policy = _policy_of(policy_file, project)
        verified, proven = _verified(policy, at, refusals)
    subject = Subject(policy, verified, task, proven, at)
    granted = grant_for(subject)
    if isinstance(granted, ScaleoutError):
        return explanation_of(subject, None, None, (*refusals, granted), host)
    state = str(state_dir.absolute() if state_dir else default_state(policy.project.name))
    plan = None
    try:
        for name, rule in granted.data_sets.items():
            check_data_set(name, rule)
        plan = plan_of(granted, resolve_environment(granted.environment), state)
    except ScaleoutError as exc:
        refusals.append(exc)
    return explanation_of(subject, plan, granted if plan else None, tuple(refusals), host)


def host_facts() -> HostFacts:
    filters = seccomp.load()
    return HostFacts(
        root=os.geteuid() == 0,
        landlock_abi=min(max(syscalls.landlock_abi(), 0), 7),
        filter_sha256=filters.step_sha256,
        filter_instructions=len(filters.step) // 8,  # struct sock_filter
        filter_calls=tuple(sorted(filters.names.values())),
    )


def _policy_of(file: Path, project: Path | None) -> Policy:
    with storage_errors(f"read the policy {file}"):
        policy = parse_policy_yaml(file.read_bytes(), name=str(file))
    return replace(policy, project=replace(policy.project, path=str(find_project(project)))) if project else policy


def _development(project: Path, data_sets: dict[str, str], at: Now) -> tuple[Policy, VerifiedManifest]:
    """What the development mode would sign now, without signing it."""
    terms = Terms(
        valid_days=30,
        environments={"default": Expected()},
        data_sets={name: Expected() for name in data_sets},
        development=True,
    )
    with Tree(project) as tree:
        found = read_unverified(tree)
        manifest = make_manifest(read_folder(tree), terms, found[1] if found else None, at, project.name)
    cpus = len(os.sched_getaffinity(0))
    policy = development_policy(str(project), development_python(), data_sets, manifest.project, cpus=cpus)
    return policy, VerifiedManifest(manifest, sha256_hex(manifest_payload(manifest)), (), {}, 1, True)


def _verified(policy: Policy, at: Now, refusals: list[ScaleoutError]) -> tuple[VerifiedManifest, bool]:
    """The manifest there, proven if it can be; else as it lies there, with what a run would be refused for."""
    folder = Path(policy.project.path)
    try:
        proven = prove(folder, read_trust_root(Path(policy.trust_root), at), policy, Floors(), at)
        refuse(check_project(proven))
        return proven.manifest, True
    except ScaleoutError as exc:
        refusals.append(exc)
    with Tree(folder) as tree:
        found = read_unverified(tree)
    if found is None:
        raise VerificationError(
            f"cannot explain {folder}: it has no signed manifest, and the policy asks for one",
            code="manifest-missing",
            hint="Sign it with `scaleoutctl sign`, or explain it without --policy.",
        )
    manifest = found[1]
    return VerifiedManifest(manifest, sha256_hex(found[0].payload), (), {}, 0, manifest.development), False


# --- words --------------------------------------------------------------------------------------------------------


def lines_of(told: Explanation) -> Iterator[str]:
    """The whole text, line by line."""
    project, policy = told.project, told.policy
    yield f"What the step “{told.task}” of project {project['name']} may see, do and send"
    yield ""
    for refusal in told.refusals:
        yield f"! As things are it would be REFUSED: {refusal['message']} [{refusal['code']}]"
        if refusal["hint"]:
            yield f"  → {refusal['hint']}"
    if policy["development"]:
        yield "! Development mode: the person who runs it signs it; no policy of an administrator is in force."
    elif project["proven"]:
        yield f"Signed and proven: version {project['version']}, manifest {project['manifest_sha256']},"
        yield f"valid until {utc_text(project['expires_ms'])}. Policy {policy['sha256']}."
    yield f"The project is {counted(project['files'], 'file')}, {size(project['size_bytes'])}."
    yield from _section("In short", _short_lines(told))
    yield from _run_lines(told)
    yield from _section("What is guaranteed while it runs", _outcome_lines(told))
    yield from _section("What it may ask of the operating system (system calls)", _call_lines(told))
    yield from _section("Limits of one run", _limit_lines(told))
    yield from _section("What comes in", _in_lines(told))
    yield from _section("What may leave this computer", _leave_lines(told))
    yield from _section("How often", _budget_lines(told))


def _section(title: str, lines: Iterator[str]) -> Iterator[str]:
    yield ""
    yield title
    for line in lines:
        yield f"  {line}"


def _short_lines(told: Explanation) -> Iterator[str]:
    """For a reader who stops here: what is started, what it gets to see, what leaves, what is not promised."""
    signed = "whoever runs it signed it" if told.policy["development"] else "somebody whom the policy trusts signed it"
    yield f"{ACTS[told.task]} {signed}, and a run is refused when one byte has changed since."
    if told.run is not None:
        yield f"Beside the project it reads of this computer's data: {', '.join(sorted(told.run['data_sets'])) or 'nothing'}."
    if told.run is not None and told.run["devices"]:
        yield f"It computes on a device of this computer: {', '.join(told.run['devices'])}. What a program leaves in such a"
        yield "device's memory is cleared by the device's driver, or not at all: this node cannot prove which."
    if all(held.demanded and held.providers for held in told.outcomes):
        yield "It cannot change that data, and cannot send anything by itself: it has no network."
    else:
        yield "! Not everything that should hold it does: see NOT and OPEN below."
    if told.leaves["update"]:
        yield f"What leaves is the trained model, the number of examples, and {_figures(told.leaves['metadata'])}."
        yield "A trained model is made from the data. How much of a single person's data it may hold is a question of the method,"
        yield "and for those who sign it: this node checks the form of what leaves, not what can be learned from it."
    else:
        yield f"What leaves is {_figures(told.leaves['metrics'])}. No model and no row of data leaves with it by design."
    yield "Each run, each refusal and each thing that left is in a record in which a later change shows."


def _figures(keys: Sequence[str]) -> str:
    return "ANY figures that the program writes" if "*" in keys else f"the figures {', '.join(keys)}" if keys else "no figures"


def _run_lines(told: Explanation) -> Iterator[str]:
    run = told.run
    if run is None:
        return
    first = [f"before the first task, once, without a model: {' '.join(run['startup'])}"] if run["startup"] else []
    yield from _section("What runs", iter([
        *first,
        " ".join(run["command"]),
        f"in {run['folder']}, with {run['interpreter']} (environment {run['environment']},"
        f" {'proven by its digest' if run['environment_sha256'] else 'not pinned by a digest'})",
    ]))  # fmt: skip
    width = min(34, max(len(seen.path) for seen in told.sees))
    rows = []
    for access, title in (("write", "write"), ("read", "read"), ("read and execute", "run"), ("device", "device")):
        for seen in told.sees:
            if seen.access == access:
                source = f" (here: {seen.source})" if seen.source and seen.source != seen.path else ""
                rows.append(f"{title:<6} {seen.path:<{width}} {seen.why}{source}")
    yield from _section("Everything it can see (nothing else exists for it)", iter(rows))
    yield from _section("Environment variables (it gets no other)", (f"{key}={value}" for key, value in run["variables"].items()))


def _outcome_lines(told: Explanation) -> Iterator[str]:
    granted = ", ".join(told.run["devices"]) if told.run is not None else ""
    for held in told.outcomes:
        text = WORDS[held.name]  # type: ignore[index]  # the names of core.plan.OUTCOMES
        if held.name == "no-foreign-device" and granted:
            text = f"It can use the devices of {granted}, which the policy grants, and no other: no camera, no disk, no terminal."
        if not held.demanded:
            yield f"NOT demanded by the policy: {text}"
        elif not held.providers:
            yield f"OPEN on this computer, so no run: {text}"
        else:
            yield text
        yield f"    {held.name}: held by {', '.join(held.providers) or 'nothing'}"
    yield "Each is proven when the node starts, by an act that must fail; what cannot be proven refuses to start."


def _call_lines(told: Explanation) -> Iterator[str]:
    calls = told.system_calls
    yield "Only the calls that numeric programs need are allowed; what is not on the list is refused."
    yield f"{len(calls['refused_and_counted'])} calls that would be surprising are refused, counted and named in the result."
    yield f"filter: {calls['instructions']} instructions, sha256 {calls['filter_sha256']}"


def _limit_lines(told: Explanation) -> Iterator[str]:
    limits = told.limits
    yield f"time         {duration(limits['wall_clock_s'])} by the clock, {duration(limits['cpu_s'])} summed over all processors"
    yield f"memory       {size(limits['memory_bytes'])}; /tmp {size(limits['tmp_bytes'])}, /dev/shm {size(limits['shm_bytes'])}"
    yield f"processes    {limits['processes']}, open files {limits['open_files']}, threads of a library {limits['cpus']}"
    yield f"disk         {size(limits['scratch_bytes'])} while it runs, no file above {size(limits['file_size_bytes'])}"
    yield f"results      {size(limits['output_bytes'])} each, printed text {size(limits['stdout_bytes'])}"


def _in_lines(told: Explanation) -> Iterator[str]:
    formats = ", ".join(told.model["formats"])
    yield f"a model of at most {size(told.model['max_bytes'])}, only as {formats}; read first where it can do no harm"
    if "pickle" in told.model["formats"]:
        yield "! pickle is allowed: such a model can run code inside the sandbox"
    sets = told.run["data_sets"] if told.run else {}
    for name, rule in sets.items():
        yield f"data set {name}: {rule['path']}, read-only" + (f", sha256 {rule['sha256']}" if rule["sha256"] else ", not pinned")
    if not sets:
        yield "no data set"


def _leave_lines(told: Explanation) -> Iterator[str]:
    leaves = told.leaves
    if leaves["update"]:
        form = "of the form that came in" if leaves["same_form"] else "OF ANY FORM"
        finite = "every number finite" if leaves["finite"] else "NUMBERS NOT CHECKED"
        yield f"the trained model, at most {size(leaves['max_update_bytes'])}, {form}, {finite}"
        if leaves["max_update_norm"] is not None:
            yield f"and no further from the model that came in than {leaves['max_update_norm']} (L2 norm of the difference)"
        yield "the number of examples it was trained on"
        yield f"facts about the training: {_keys(leaves['metadata'])}"
    else:
        yield f"metrics: {_keys(leaves['metrics'])}"
    for item in leaves["ranges"]:
        yield f"{item['key']} only as a number from {item['minimum'] or 'any'} to {item['maximum'] or 'any'}"
    telemetry = "yes" if leaves["telemetry"] else "no"
    yield f"figures about this computer (telemetry): {telemetry}; attributes: {_keys(leaves['attributes'])}"
    failure = "the code and the text of the failure" if leaves["failure_detail"] else "a code, never a text or traceback"
    yield f"when it fails: {failure}"
    yield "Size, fingerprint (digest) and destination are on record in the trail before the first byte leaves."


def _budget_lines(told: Explanation) -> Iterator[str]:
    budget = told.budget
    yield f"{budget['runs_per_day']} runs a day, {budget['runs_per_session']} in one session"
    yield f"for the servers (combiners): {_any(budget['combiners'])}; for the trainings (sessions): {_any(budget['sessions'])}"
    if budget["hours"]:
        zone = budget["time_zone"] or "the host's own zone"
        yield f"a run may begin only at these hours: {'; '.join(budget['hours'])} ({zone}); one that has begun may end later"
    else:
        yield "at any hour"
    if budget["approval"] == "second-person":
        who = "whoever administers this node" if "*" in budget["approvers"] else ", ".join(budget["approvers"]) or "nobody"
        yield f"each training (session) waits until a second person has approved it: {who}, never who installed it"
        yield "the approval, with name and time, is on record, and holds under this policy only"
    else:
        yield "no second person is asked before a new training (session) begins"
    yield f"an update is released only if it was made of at least {counted(budget['min_num_examples'], 'example')}"


def _any(patterns: Sequence[str]) -> str:
    return "any" if "*" in patterns else (", ".join(patterns) or "none")


def _keys(keys: Sequence[str]) -> str:
    return "ANY key" if "*" in keys else (", ".join(keys) or "none")


def _print_difference(first: Explanation, second: Explanation, as_json: bool) -> int:
    found = differences(
        strictjson.parse(json.dumps(first.as_json()).encode(), max_bytes=1 << 24, what="an explanation"),
        strictjson.parse(json.dumps(second.as_json()).encode(), max_bytes=1 << 24, what="an explanation"),
    )
    if as_json:
        click.echo(json.dumps({"differences": [{"key": key, "old": old, "new": new} for key, old, new in found]}, indent=2))
        return 0
    for key, old, new in found:
        click.echo(escape(f"{key}: {_shown(old)} → {_shown(new)}"))
    if not found:
        click.echo("no difference")
    return 0


def _shown(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return "–" if value is None else str(value)
