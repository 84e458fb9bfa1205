# SPDX-License-Identifier: Apache-2.0
"""Broken hosts, made with namespaces, mounts and modes: `doctor` names each one's cause and what changes it.

Every case has the healthy host as its control: the same check is ok there.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from scaleoutd.cli.init import write_project
from scaleoutd.core import records, strictjson
from scaleoutd.core.clock import Floors
from tests.step_client import readable_copy

ROOT = os.geteuid() == 0
USER = 54_321
SITE = Path(str(__import__("click").__file__)).parent.parent
NEEDED = ("click", "yaml", "cryptography", "cffi", "_cffi_backend*", "pycparser")

pytestmark = pytest.mark.skipif(not ROOT, reason="hosts are broken with mounts, which needs root")


@dataclass(frozen=True)
class Answer:
    """What the doctor said: exit status, worst status, findings by check."""

    status: int
    findings: dict[str, dict[str, str]]

    def shows(self, check: str, status: str, *words: str) -> None:
        finding = self.findings[check]
        text = finding["found"] + " → " + finding["fix"]
        assert finding["status"] == status, finding
        assert status == "ok" or finding["fix"], f"{check} does not say what to do"
        for word in words:
            assert word in text, f"{word!r} is not in {text!r}"
        assert self.status >= {"ok": 0, "warn": 1, "fail": 2}[status]


class Host:
    """A private mount namespace in which the doctor runs; `breaking` is a shell line that changes it before."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home, self.state, self.project = folder / "home", folder / "state", folder / "project"
        self.home.mkdir()
        write_project(self.project)

    def doctor(
        self,
        *options: str | Path,
        breaking: str = ":",
        quick: bool = True,
        environment: Mapping[str, str] = {},
        wrapper: Sequence[str] = (),
        unshare: Sequence[str] = ("-m",),
    ) -> Answer:
        command = [
            *wrapper,
            sys.executable,
            "-m",
            "scaleoutd.cli.scaleoutctl",
            "doctor",
            "--json",
            "--state-dir",
            str(self.state),
        ]
        command += ["--quick"] if quick else []
        command += [str(option) for option in options]
        run = subprocess.run(
            ["unshare", *unshare, "--propagation", "private", "sh", "-ec", f'{breaking}\nexec "$@"', "sh", *command],
            capture_output=True,
            text=True,
            timeout=120,
            cwd=self.folder,
            env={"PATH": os.environ["PATH"], "HOME": str(self.home), "PYTHONPATH": str(readable_copy()), **environment},
        )
        return answer_of(run)


def answer_of(run: subprocess.CompletedProcess[str]) -> Answer:
    assert run.returncode in (0, 1, 2) and run.stdout.startswith("{"), run.stderr + run.stdout
    told: dict[str, Any] = json.loads(run.stdout)
    assert {"ok": 0, "warn": 1, "fail": 2}[told["status"]] == run.returncode
    return Answer(run.returncode, {item["check"]: item for item in told["findings"]})


@pytest.fixture
def host() -> Iterator[Host]:
    with tempfile.TemporaryDirectory(prefix="scaleoutd-doctor-test-") as name:
        Path(name).chmod(0o755)
        yield Host(Path(name))


def policy_file(host: Host, python: str = "/usr/bin/python3", more: str = "") -> Path:
    path = host.folder / "policy.yaml"
    path.write_text(
        f"version: 1\nproject: {{name: project, path: {host.project}}}\ntrust_root: {host.folder}/trust\n"
        f"environments: {{science: {{python: {python}}}}}\n{more}"
    )
    return path


def test_a_healthy_host_has_no_failure_and_every_outcome_is_proven(host: Host) -> None:
    answer = host.doctor("--project", host.project, quick=False)
    bad = {check: item for check, item in answer.findings.items() if item["status"] == "fail"}
    assert not bad
    for name in (
        "python",
        "packages",
        "kernel",
        "seccomp",
        "interpreter",
        "noexec",
        "disk",
        "project",
        "umask",
        "proxy",
        "sandbox",
    ):
        answer.shows(name, "ok")
    assert sum(check.startswith("outcome ") for check in answer.findings) == 6
    assert all(item["status"] == "ok" for check, item in answer.findings.items() if check.startswith("outcome "))


def test_a_kernel_of_the_last_decade(host: Host) -> None:
    host.doctor(wrapper=["setarch", os.uname().machine, "--uname-2.6"]).shows("kernel", "fail", "expected 5.12")


def test_a_kernel_without_user_notification(host: Host) -> None:
    actions = host.folder / "actions"
    actions.write_text("kill_process errno allow\n")
    breaking = f"mount --bind {actions} /proc/sys/kernel/seccomp/actions_avail"
    host.doctor(breaking=breaking).shows("seccomp", "fail", "lacks user_notif")


def test_a_missing_package(host: Host) -> None:
    empty = host.folder / "empty"
    empty.mkdir()
    answer = host.doctor(breaking=f"mount --bind {empty} {SITE / 'grpc'}")
    answer.shows("packages", "fail", "grpcio", "pip install grpcio", "apt install python3-grpcio")


def test_a_package_that_others_can_change(host: Host) -> None:
    copy = host.folder / "pythonjsonlogger"
    shutil.copytree(SITE / "pythonjsonlogger", copy)
    copy.chmod(0o777)
    answer = host.doctor(breaking=f"mount --bind {copy} {SITE / 'pythonjsonlogger'}")
    answer.shows("packages", "fail", "others can change", "chmod -R go-w")


def test_an_interpreter_on_a_noexec_mount(host: Host) -> None:
    # The copy lies on a file system that is remounted noexec after the copy.
    place = host.folder / "place"
    (place / "bin").mkdir(parents=True)
    (place / "lib" / "python3.11").mkdir(parents=True)
    shutil.copy("/usr/bin/python3", place / "bin" / "python3")
    breaking = f"mount --bind {place} {place}\nmount -o remount,bind,noexec {place}"
    policy = policy_file(host, str(place / "bin" / "python3"))
    host.doctor("--policy", policy, breaking=breaking).shows("noexec", "fail", str(place), "remount,exec")
    host.doctor("--policy", policy).shows("noexec", "ok")


def test_a_state_folder_on_a_noexec_mount(host: Host) -> None:
    host.state.mkdir()
    breaking = f"mount -t tmpfs -o noexec,size=20g none {host.state}"
    host.doctor(breaking=breaking).shows("noexec", "warn", str(host.state), "--state-dir")


def test_a_noexec_tmp_does_not_matter(host: Host) -> None:
    breaking = "mount -t tmpfs -o noexec none /var/tmp"
    host.doctor(breaking=breaking).shows("noexec", "ok", "/var/tmp", "a step has its own")


def test_a_full_disk(host: Host) -> None:
    host.state.mkdir()
    breaking = f"mount -t tmpfs -o size=16m none {host.state}"
    host.doctor(breaking=breaking).shows("disk", "fail", "free", str(host.state))


def test_a_disk_smaller_than_the_limits_of_a_run(host: Host) -> None:
    host.state.mkdir()
    breaking = f"mount -t tmpfs -o size=1g none {host.state}"
    host.doctor(breaking=breaking).shows("disk", "warn", "12 GiB", "limits.scratch_bytes")


def test_no_inode_left(host: Host) -> None:
    host.state.mkdir()
    breaking = f"mount -t tmpfs -o size=20g,nr_inodes=50 none {host.state}"
    host.doctor(breaking=breaking).shows("disk", "fail", "free inode", "df -i")


def test_a_read_only_state_folder(host: Host) -> None:
    host.state.mkdir()
    breaking = f"mount -t tmpfs -o ro none {host.state}"
    host.doctor(breaking=breaking).shows("state-folder", "fail", "read-only", "--state-dir")


def test_a_virtual_environment_that_the_steps_uid_cannot_read(host: Host) -> None:
    """umask 077 while pip ran: the one folder that is closed is named."""
    prefix = host.folder / "venv"
    (prefix / "bin").mkdir(parents=True)
    packages = prefix / "lib" / "python3.11" / "site-packages"
    packages.mkdir(parents=True)
    (prefix / "pyvenv.cfg").write_text("home = /usr/bin\n")
    (prefix / "bin" / "python").symlink_to("/usr/bin/python3")
    policy = policy_file(host, str(prefix / "bin" / "python"))
    host.doctor("--policy", policy).shows("interpreter", "ok")
    packages.parent.chmod(0o700)
    host.doctor("--policy", policy).shows("interpreter", "fail", f"folder {packages.parent} has mode 0700", "chmod")


def test_an_interpreter_below_a_closed_home_is_fine_with_a_mount_view(host: Host) -> None:
    """Control for the one above: root opens the bind's source, so a closed folder above it does not matter."""
    prefix = host.home / "venv"
    (prefix / "bin").mkdir(parents=True)
    (prefix / "lib" / "python3.11" / "site-packages").mkdir(parents=True)
    (prefix / "pyvenv.cfg").write_text("home = /usr/bin\n")
    (prefix / "bin" / "python").symlink_to("/usr/bin/python3")
    host.home.chmod(0o700)
    policy = policy_file(host, str(prefix / "bin" / "python"))
    host.doctor("--policy", policy).shows("interpreter", "ok")
    inner = policy_file(host, str(prefix / "bin" / "python"), "backend: inner\n")
    host.doctor("--policy", inner).shows("interpreter", "fail", f"folder {host.home} has mode 0700")


def test_an_interpreter_that_is_not_there(host: Host) -> None:
    policy = policy_file(host, "/opt/nothing/bin/python")
    host.doctor("--policy", policy).shows("interpreter", "fail", "/opt/nothing/bin/python")


def test_a_data_set_with_one_file_that_the_step_cannot_read(host: Host) -> None:
    data = host.folder / "data"
    data.mkdir()
    (data / "a.csv").write_text("1")
    policy = policy_file(host, more=f"data_sets: {{patients: {{path: {data}}}}}\n")
    host.doctor("--policy", policy).shows("data-set", "ok", "patients")
    (data / "b.csv").write_text("2")
    (data / "b.csv").chmod(0o600)
    host.doctor("--policy", policy).shows("data-set", "fail", "b.csv has mode 0600", "chmod o+rX")


def test_a_data_set_that_is_not_mounted(host: Host) -> None:
    policy = policy_file(host, more="data_sets: {patients: {path: /srv/not-mounted}}\n")
    host.doctor("--policy", policy).shows("data-set", "fail", "/srv/not-mounted", "data_sets.patients.path")


def test_a_policy_with_a_typing_error(host: Host) -> None:
    policy = policy_file(host, more="limts: {cpus: 2}\n")
    host.doctor("--policy", policy).shows("policy", "fail", "limts", "limits")


def test_a_policy_without_its_trust_root(host: Host) -> None:
    host.doctor("--policy", policy_file(host)).shows("project", "fail", "trust")


def test_a_clock_before_a_time_on_record(host: Host) -> None:
    (host.state / "runner").mkdir(parents=True)
    floors = Floors(4_000_000_000_000, 1, {})
    (host.state / "runner" / "floors.json").write_bytes(strictjson.canonical(records.encode(floors)))
    host.doctor().shows("clock", "fail", "on record", "2096-10-02")


def test_floors_that_cannot_be_read(host: Host) -> None:
    (host.state / "runner").mkdir(parents=True)
    (host.state / "runner" / "floors.json").write_text("{")
    host.doctor().shows("clock", "fail", "floors")


def test_a_private_umask_as_root(host: Host) -> None:
    host.doctor(breaking="umask 077").shows("umask", "warn", "0077", "umask 022")


def test_an_open_umask(host: Host) -> None:
    host.doctor(breaking="umask 000").shows("umask", "warn", "everybody")


def test_a_proxy_that_is_not_used(host: Host) -> None:
    answer = host.doctor(environment={"HTTPS_PROXY": "http://proxy.example.org:3128"})
    answer.shows("proxy", "warn", "HTTPS_PROXY", "unset HTTPS_PROXY")


def test_hidden_processes(host: Host) -> None:
    breaking = "mount -t proc -o hidepid=2 proc /proc"
    host.doctor(breaking=breaking, unshare=("-mp", "--fork")).shows("hidepid", "warn", "hidepid=")


def test_a_cgroup_file_system_that_cannot_be_written(host: Host) -> None:
    breaking = "umount -R /sys/fs/cgroup\nmount -t tmpfs -o ro none /sys/fs/cgroup"
    host.doctor(breaking=breaking).shows("cgroup", "warn", "memory and processes", "cgroup")


def test_fips_mode(host: Host) -> None:
    breaking = (
        f"mkdir -p {host.folder}/sys/crypto {host.folder}/sys/kernel/seccomp\necho 1 > {host.folder}/sys/crypto/fips_enabled\n"
        f"cat /proc/sys/kernel/seccomp/actions_avail > {host.folder}/sys/kernel/seccomp/actions_avail\n"
        f"mount --bind {host.folder}/sys /proc/sys"
    )
    host.doctor(breaking=breaking).shows("fips", "warn", "Ed25519", "--algorithm p256")


def test_selinux_enforcing(host: Host) -> None:
    breaking = "mount -t tmpfs none /sys/fs\nmkdir /sys/fs/selinux\necho 1 > /sys/fs/selinux/enforce"
    host.doctor(breaking=breaking).shows("security-modules", "warn", "SELinux is enforcing", "ausearch")


def test_fapolicyd(host: Host) -> None:
    breaking = (
        f"mkdir {host.folder}/work\nmount -t tmpfs none {host.folder}/work\nmkdir {host.folder}/work/u {host.folder}/work/w\n"
        f"mount -t overlay -o lowerdir=/etc,upperdir={host.folder}/work/u,workdir={host.folder}/work/w none /etc\n"
        "mkdir /etc/fapolicyd"
    )
    host.doctor(breaking=breaking).shows("fapolicyd", "warn", "fapolicyd-cli --file add")


# --- the sandbox itself -------------------------------------------------------------------------------------------


def filtered(*names: str) -> list[str]:
    """A wrapper that refuses calls as a container's filter does, and then starts what follows."""
    program = (
        "import os, sys, pyseccomp as s; f = s.SyscallFilter(s.ALLOW);"
        f" [f.add_rule(s.ERRNO(1), n) for n in {list(names)!r}]; f.load(); os.execv(sys.argv[1], sys.argv[1:])"
    )
    return [sys.executable, "-c", program]


def test_a_container_that_forbids_namespaces_fails_the_proof_and_says_so(host: Host) -> None:
    policy = policy_file(host)
    answer = host.doctor("--policy", policy, quick=False, wrapper=filtered("unshare", "mount", "open_tree", "pivot_root"))
    answer.shows("sandbox", "fail")
    host.doctor("--policy", policy, quick=False).shows("sandbox", "ok")


def test_landlock_hidden_by_a_filter_leaves_the_outcomes_proven(host: Host) -> None:
    answer = host.doctor(quick=False, wrapper=filtered("landlock_create_ruleset"))
    answer.shows("landlock", "warn", "not available")
    answer.shows("outcome no-read-outside", "ok", "mount-view")


# --- as an ordinary user ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def package() -> Iterator[Path]:
    """The program with its packages where everybody can read them."""
    with tempfile.TemporaryDirectory(prefix="scaleoutd-doctor-user-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        shutil.copytree(readable_copy() / "scaleoutd", folder / "scaleoutd")
        for pattern in NEEDED:
            for path in SITE.glob(pattern):
                target = folder / path.name
                shutil.copytree(path, target, ignore=shutil.ignore_patterns("__pycache__")) if path.is_dir() else shutil.copy(
                    path, target
                )
        yield folder


def as_user(host: Host, package: Path, *options: str, breaking: str = ":", mapped: bool = False) -> Answer:
    """The doctor as uid USER; `mapped`: inside a user namespace whose switches `breaking` may change as its root."""
    os.chown(host.home, USER, USER)
    os.chown(host.project, USER, USER)
    inner = (
        f"{breaking}; exec setpriv --reuid {USER} --regid {USER} --clear-groups env HOME={host.home} PYTHONPATH={package}"
        f" /usr/bin/python3 -S -m scaleoutd.cli.scaleoutctl doctor --json --state-dir {host.home}/state {' '.join(options)}"
    )
    if not mapped:
        run = subprocess.run(
            ["unshare", "-m", "--propagation", "private", "sh", "-ec", inner],
            capture_output=True, text=True, timeout=120, cwd=host.home, env={"PATH": os.environ["PATH"]},
        )  # fmt: skip
        return answer_of(run)
    # The outer shell waits until the maps are written; the inner one, started after, is root in the namespace.
    process = subprocess.Popen(
        ["unshare", "-U", "sh", "-c", 'echo in; read go; exec sh -ec "$1"', "sh", inner],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=host.home,
        env={"PATH": os.environ["PATH"]},
    )  # fmt: skip
    assert process.stdin and process.stdout
    assert process.stdout.readline() == "in\n"
    for name in ("uid_map", "gid_map"):
        Path(f"/proc/{process.pid}/{name}").write_text("0 0 65536")
    output, errors = process.communicate("go\n", timeout=120)
    return answer_of(subprocess.CompletedProcess([], process.returncode, output, errors))


def test_an_ordinary_user_on_a_healthy_host(host: Host, package: Path) -> None:
    answer = as_user(host, package)
    answer.shows("user-namespaces", "ok")
    answer.shows("sandbox", "ok")
    answer.shows("outcome no-socket-out", "ok", "network-namespace")


def test_user_namespaces_set_to_zero(host: Host, package: Path) -> None:
    breaking = "echo 0 > /proc/sys/user/max_user_namespaces"
    answer = as_user(host, package, breaking=breaking, mapped=True)
    answer.shows("user-namespaces", "warn", "user.max_user_namespaces is 0", "sysctl -w user.max_user_namespaces=")
    answer.shows("sandbox", "warn", "user namespace")
    assert any(item["status"] == "warn" for check, item in answer.findings.items() if check.startswith("outcome "))


def test_user_namespaces_set_to_zero_under_a_policy_are_a_failure(host: Host, package: Path) -> None:
    breaking = "echo 0 > /proc/sys/user/max_user_namespaces"
    answer = as_user(host, package, "--policy", str(policy_file(host)), breaking=breaking, mapped=True)
    answer.shows("user-namespaces", "fail", "user.max_user_namespaces is 0")
    answer.shows("sandbox", "fail")


def restricted(host: Host, switch: str, value: str) -> str:
    """A kernel switch that this kernel does not have, and a filter-less way to refuse: the user's limit is 0 as well."""
    folder = host.folder / "kernel"
    return (
        f"mkdir -p {folder}/seccomp; cat /proc/sys/kernel/seccomp/actions_avail > {folder}/seccomp/actions_avail;"
        f" echo {value} > {folder}/{switch}; mount --bind {folder} /proc/sys/kernel"
    )


@pytest.mark.parametrize(
    ("switch", "value", "words"),
    [
        ("apparmor_restrict_unprivileged_userns", "1", ("AppArmor", "apparmor_restrict_unprivileged_userns=0")),
        ("unprivileged_userns_clone", "0", ("kernel.unprivileged_userns_clone is 0", "unprivileged_userns_clone=1")),
        ("none", "0", ("seccomp", "container")),
    ],
)
def test_a_switch_of_ubuntu_or_debian_or_a_container_is_named(
    host: Host, package: Path, switch: str, value: str, words: tuple[str, ...]
) -> None:
    """The refusal itself is a filter's; the switch that explains it is put where the kernel of that system has it."""
    wrapper = " ".join(f"'{part}'" if " " in part else part for part in filtered("unshare"))
    answer = as_user_filtered(host, package, restricted(host, switch, value), wrapper)
    answer.shows("user-namespaces", "warn", *words)


def as_user_filtered(host: Host, package: Path, breaking: str, wrapper: str) -> Answer:
    os.chown(host.home, USER, USER)
    program = wrapper.split(" -c ", 1)[1].strip("'")
    run = subprocess.run(
        [
            "unshare", "-m", "--propagation", "private", "sh", "-ec", f'{breaking}; exec "$@"', "sh",
            sys.executable, "-c", program, "/usr/bin/setpriv", "--reuid", str(USER), "--regid", str(USER), "--clear-groups",
            "env", f"HOME={host.home}", f"PYTHONPATH={package}", "/usr/bin/python3", "-S", "-m", "scaleoutd.cli.scaleoutctl",
            "doctor", "--json", "--quick", "--state-dir", str(host.home / "state"),
        ],
        capture_output=True, text=True, timeout=120, cwd=host.home, env={"PATH": os.environ["PATH"]},
    )  # fmt: skip
    return answer_of(run)


def test_a_state_folder_of_somebody_else(host: Host, package: Path) -> None:
    (host.home / "state").mkdir(mode=0o755)
    as_user(host, package, "--quick").shows("state-folder", "fail", "cannot be written", "--state-dir")
