# SPDX-License-Identifier: Apache-2.0
"""`explain`: the golden texts, that it starts and writes nothing, and that it says what the runner would do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from scaleoutd.cli.explain import lines_of
from scaleoutd.cli.explanation import Explanation, HostFacts, Subject, explanation_of, grant_for, plan_of
from scaleoutd.cli.init import write_project
from scaleoutd.cli.scaleoutctl import scaleoutctl
from scaleoutd.core.clock import Now
from scaleoutd.core.grant import Grant
from scaleoutd.core.manifest import Expected, FileEntry, Manifest, VerifiedManifest
from scaleoutd.core.plan import OUTCOMES, Bind, Task
from scaleoutd.core.policy import Budget, DataSetRule, Egress, EnvironmentRule, Policy, ProjectRule
from scaleoutd.runner.environments import ResolvedEnvironment

VECTORS = Path(__file__).resolve().parents[2] / "vectors" / "explain"
DIGEST = "ab" * 32
NOW = Now(1_800_000_000_000, 0, True)
HOST = HostFacts(root=True, landlock_abi=2, filter_sha256="cd" * 32, filter_instructions=630, filter_calls=("bpf", "ptrace"))
SYSTEM = ResolvedEnvironment("/usr/bin/python3", (Bind("/usr", "/usr", executable=True),), ("/usr/bin",), False)

POLICY = Policy(
    version=1,
    project=ProjectRule("readmission", "/srv/readmission"),
    trust_root="/etc/scaleoutd/trust",
    environments={"science": EnvironmentRule("/usr/bin/python3", (), DIGEST)},
    data_sets={"patients": DataSetRule("/srv/data/patients", "full", DIGEST)},
    egress=Egress(metrics=("loss", "auc"), metadata=("epochs",)),
    budget=Budget(runs_per_day=24, runs_per_session=100, combiners=("combiner.example.org",), min_num_examples=50),
)
MANIFEST = Manifest(
    project="readmission",
    version=7,
    not_before_ms=1,
    expires_ms=1_900_000_000_000,
    files=(FileEntry("train.py", 1200, DIGEST), FileEntry("validate.py", 800, DIGEST)),
    steps={"train": ("python", "train.py"), "validate": ("python", "validate.py")},
    environments={"science": Expected(DIGEST)},
    data_sets={"patients": Expected(DIGEST)},
)


def explanation(
    policy: Policy = POLICY, task: Task = "train", host: HostFacts = HOST, manifest: Manifest = MANIFEST
) -> Explanation:
    subject = Subject(policy, VerifiedManifest(manifest, "ef" * 32, (), {}, 1, False), task, True, NOW)
    granted = grant_for(subject)
    if not isinstance(granted, Grant):
        return explanation_of(subject, None, None, (granted,), host)
    return explanation_of(subject, plan_of(granted, SYSTEM, "/var/lib/scaleoutd"), granted, (), host)


CASES = {
    "train": explanation(),
    "validate": explanation(task="validate"),
    "pickle-and-an-open-outcome": explanation(
        replace(POLICY, backend="inner", model_formats=("npz", "pickle"), outcomes=OUTCOMES[:5]),
        host=replace(HOST, root=False, landlock_abi=0),
    ),
    "refused": explanation(replace(POLICY, tasks=("validate",))),
}


@pytest.mark.parametrize("name", CASES)
def test_golden(name: str) -> None:
    """The wording that an ethics board reads changes only on purpose: UPDATE_GOLDEN=1 writes it anew."""
    text = "\n".join(lines_of(CASES[name])) + "\n"
    path = VECTORS / f"{name}.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert text == path.read_text()


def test_a_startup_command_is_told_first() -> None:
    manifest = replace(MANIFEST, steps={**MANIFEST.steps, "startup": ("python", "data.py")})
    lines = list(lines_of(explanation(manifest=manifest)))
    told = lines[lines.index("What runs") + 1 : lines.index("What runs") + 3]
    assert told[0].strip() == "before the first task, once, without a model: python data.py"
    assert told[1].strip() == "python train.py /in/model.npz /scratch/out/model.npz"


def test_no_line_of_a_good_task_says_refused_and_of_a_denied_one_does() -> None:
    assert not [line for line in lines_of(CASES["train"]) if "REFUSED" in line]
    denied = CASES["refused"]
    assert [refusal["code"] for refusal in denied.refusals] == ["task-type-denied"]
    assert [line for line in lines_of(denied) if "REFUSED" in line]
    assert denied.run is None and not denied.sees


def test_every_path_of_the_launchers_view_is_listed() -> None:
    """What step.view would attach, mount, write or link is in the explanation, so nothing is seen that was not said."""
    from scaleoutd.step import view

    subject = Subject(POLICY, VerifiedManifest(MANIFEST, "ef" * 32, (), {}, 1, False), "train", True, NOW)
    granted = grant_for(subject)
    assert isinstance(granted, Grant)
    sight = view.of_plan(plan_of(granted, SYSTEM, "/var/lib/scaleoutd"), 1, 1)
    shown = {seen.path for seen in CASES["train"].sees}
    built = {item.target for item in sight.attach} | {item.target for item in sight.tmpfs} | {item.path for item in sight.files}
    assert built | {path for path, _ in sight.links} <= shown


def test_a_write_is_said_of_the_runs_own_folders_only() -> None:
    assert {seen.path for seen in CASES["train"].sees if seen.access == "write"} == {"/scratch", "/tmp", "/dev/shm"}


def invoke(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(scaleoutctl, ["explain", *arguments], standalone_mode=False)
    if result.exception is not None:
        raise result.exception
    return int(result.return_value), result.output


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    (tmp_path / "home").mkdir()
    folder = tmp_path / "project"
    write_project(folder)
    return folder


def test_it_writes_and_signs_nothing(project: Path, tmp_path: Path) -> None:
    before = sorted(path for path in tmp_path.rglob("*"))
    status, text = invoke("--project", str(project))
    assert status == 0 and "Development mode" in text
    assert sorted(path for path in tmp_path.rglob("*")) == before


def test_it_starts_no_process(project: Path) -> None:
    code = (
        "import sys; sys.addaudithook(lambda name, given: sys.exit(f'started {given[0]}')"
        " if name in ('os.fork', 'os.exec', 'os.posix_spawn', 'subprocess.Popen') else None);"
        " from scaleoutd.cli.scaleoutctl import main; sys.argv[1:] = ['explain', '--project', sys.argv[1]]; main()"
    )
    run = subprocess.run([sys.executable, "-c", code, str(project)], capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr


def test_json_is_one_object_with_every_part(project: Path) -> None:
    data = project / "data.csv"
    data.write_text("1\n")
    status, text = invoke("train", "--project", str(project), "--data", f"table={data}", "--json")
    told = json.loads(text)
    assert status == 0
    assert set(told) == {
        "task", "project", "policy", "refusals", "run", "sees", "outcomes", "system_calls", "limits", "model", "leaves", "budget",
    }  # fmt: skip
    assert told["run"]["data_sets"]["table"]["path"] == os.path.realpath(data)
    assert told["run"]["variables"]["SCALEOUTD_DATA_TABLE"] == "/data/table"
    assert {"/project", "/in", "/data/table", "/scratch"} <= {seen["path"] for seen in told["sees"]}


def test_an_unsigned_project_under_a_policy_is_refused_by_name(project: Path, tmp_path: Path) -> None:
    from scaleoutd.errors import VerificationError

    policy = tmp_path / "policy.yaml"
    policy.write_text(f"version: 1\nproject: {{name: project, path: {project}}}\ntrust_root: {tmp_path}/trust\n")
    with pytest.raises(VerificationError, match="no signed manifest"):
        invoke("--policy", str(policy))


def test_the_difference_of_two_policies_is_named_key_by_key(project: Path, tmp_path: Path) -> None:
    from scaleoutd.cli.development import development_signer, resign_if_changed

    key, _ = development_signer(tmp_path / "home")
    resign_if_changed(project, key, environments=["default"])
    root = tmp_path / "home" / ".config" / "scaleoutd" / "development" / "root" / "1.json"
    common = (
        f"version: 1\nproject: {{name: project, path: {project}}}\ntrust_root: {root}\n"
        "environments: {default: {python: /usr/bin/python3}}\n"
    )
    old, new = tmp_path / "old.yaml", tmp_path / "new.yaml"
    old.write_text(common)
    new.write_text(common + "limits: {wall_clock_s: 60}\negress: {metrics: [loss]}\n")
    status, text = invoke("--policy", str(old), "--diff", str(new), "--json")
    found = {item["key"]: (item["old"], item["new"]) for item in json.loads(text)["differences"]}
    assert status == 0
    assert found["limits.wall_clock_s"] == (3600, 60)
    assert found["leaves.metrics"] == ([], ["loss"])
    assert set(found) == {"limits.wall_clock_s", "leaves.metrics", "policy.sha256"}


def test_devices_that_are_granted_are_told_with_what_is_not_promised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scaleoutd.step.devices.present", lambda words: ("/dev/nvidia0", "/dev/nvidiactl"))
    granted = explanation(replace(POLICY, devices=("nvidia",)))
    text = "\n".join(lines_of(granted))
    assert "this node cannot prove which" in text
    assert "It can use the devices of nvidia, which the policy grants, and no other" in text
    told = {seen.path: seen.why for seen in granted.sees if "nvidia" in seen.path}
    assert told == {
        "/dev/nvidia0": "devices: nvidia, a driver of this computer",
        "/dev/nvidiactl": "devices: nvidia, a driver of this computer",
        "/dev/nvidia-uvm": "devices: nvidia, NOT HERE: no run",
    }
    assert not [line for line in lines_of(explanation()) if "nvidia" in line]
