# SPDX-License-Identifier: Apache-2.0
"""From a policy to the files of systemd: what stands in them, and what no unit could hold."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from scaleoutd.core.plan import Bind
from scaleoutd.core.policy import DataSetRule, Policy, parse_policy, parse_policy_yaml
from scaleoutd.core.render import AGENT, LOCK, RUNNER, SLICE, STEP, Facts, render
from scaleoutd.errors import ConfigError

YAML = """
version: 1
project: {name: heart, path: /var/lib/scaleoutd/project/current}
trust_root: /etc/scaleoutd/trust
limits: {memory_bytes: 1GiB, processes: 100, cpus: 2, tmp_bytes: 64MiB, shm_bytes: 32MiB}
environments: {default: {python: /opt/env/bin/python3}}
data_sets: {samples: {path: /srv/data}, other: {path: /srv/two words}}
"""
ENVIRONMENT = (Bind("/usr", "/usr", True), Bind("/usr/lib", "/lib", True), Bind("/opt/env", "/opt/env", True))


def policy(**changes: str) -> Policy:
    text = YAML
    for old, new in changes.items():
        text = text.replace(old, new)
    return parse_policy_yaml(text.encode())


FACTS = Facts({"default": ENVIRONMENT})


def step(found: Policy, facts: Facts = FACTS) -> list[str]:
    return render(found, facts).files[STEP].decode().splitlines()


def test_the_lock_is_the_policy_and_its_digest_is_in_the_unit() -> None:
    rendered = render(policy(), FACTS)
    assert parse_policy(rendered.files[LOCK]) == policy()
    assert list(rendered.files)[-1] == LOCK  # written last: the others are compared with it
    assert f"Environment=SCALEOUTD_POLICY_DIGEST={policy().digest()}" in step(policy())


def test_limits() -> None:
    lines = step(policy())
    assert f"MemoryMax={1024**3 + 24 * 1024**2}" in lines and "MemorySwapMax=0" in lines
    assert "TasksMax=108" in lines and "CPUQuota=200%" in lines and "LimitCORE=0" in lines
    ceiling = render(policy(), FACTS).files[SLICE].decode()
    assert int(re.findall(r"MemoryMax=(\d+)", ceiling)[0]) > 1024**3 + 24 * 1024**2


def test_the_list_of_tmpfs_is_reset_and_whole() -> None:
    lines = [line for line in step(policy()) if line.startswith("TemporaryFileSystem")]
    assert lines[0] == "TemporaryFileSystem="
    targets = [line.partition("=")[2].partition(":")[0] for line in lines[1:]]
    unit = (Path(__file__).parents[3] / "systemd/scaleoutd-step@.service").read_text()
    assert targets == re.findall(r"^TemporaryFileSystem=([^:\n]+):", unit, re.MULTILINE) and len(set(targets)) == len(targets)
    sized = dict(zip(targets, lines[1:], strict=True))
    assert "size=67108864" in sized["/tmp"] and "size=33554432" in sized["/dev/shm"] and "noexec" in sized["/tmp"]


def test_binds_are_without_dash_and_leave_out_what_the_unit_shows() -> None:
    binds = [line for line in step(policy()) if line.startswith("BindReadOnlyPaths")]
    assert binds == [
        "BindReadOnlyPaths=/opt/env",
        'BindReadOnlyPaths="/srv/two words:/data/other"',
        "BindReadOnlyPaths=/srv/data:/data/samples",
    ]
    assert "ExecPaths=/opt/env" in step(policy())


def test_a_specifier_is_not_a_specifier() -> None:
    assert "BindReadOnlyPaths=/srv/%%h:/data/samples" in step(policy(**{"/srv/data": "/srv/%h"}))


def test_what_lies_in_a_home_the_runner_is_shown_alone() -> None:
    assert "ProtectHome" not in render(policy(), FACTS).files[RUNNER].decode()
    facts = Facts({"default": (Bind("/home/kim/env", "/home/kim/env", True),)})
    text = render(policy(), facts).files[RUNNER].decode()
    assert "ProtectHome=tmpfs\nBindReadOnlyPaths=/home/kim/env\n" in text


def test_the_agent_hears_whether_it_may_go_without_a_certificate() -> None:
    assert "SCALEOUTD_CLIENT_CERTIFICATE=required\n" in render(policy(), FACTS).files[AGENT].decode()
    without = policy(**{"version: 1": "version: 1\nclient_certificate: none"})
    assert "SCALEOUTD_CLIENT_CERTIFICATE=none\n" in render(without, FACTS).files[AGENT].decode()


def test_the_same_policy_gives_the_same_bytes() -> None:
    before, after = "samples: {path: /srv/data}", "other: {path: /srv/two words}"
    reordered = policy(**{f"{before}, {after}": f"{after}, {before}"})
    assert render(policy(), FACTS) == render(reordered, FACTS)


@pytest.mark.parametrize(
    "path",
    [
        "/srv/a:b",
        '/srv/a"b',
        "/srv/a\\b",
        "/srv/a'b",
        "/srv/../etc",
        "/srv//a",
        "/srv/a/",
        "/",
        "/home",
        "/var/lib/scaleoutd",
        "/var/lib/scaleoutd/audit",
        "/var/lib/scaleoutd/agent/token.json",
        "/tmp/data",
        "/run/x",
        "/proc/1",
        "/dev/sda",
    ],
)
def test_a_path_that_no_unit_can_hold_is_refused(path: str) -> None:
    with pytest.raises(ConfigError, match="cannot bind"):
        render(replace(policy(), data_sets={"samples": DataSetRule(path)}), FACTS)
    assert render(replace(policy(), data_sets={"samples": DataSetRule("/srv/fine")}), FACTS)


def test_an_environment_where_the_step_has_its_own_folder_is_refused() -> None:
    with pytest.raises(ConfigError, match="of its own"):
        render(policy(), Facts({"default": (Bind("/scratch/env", "/scratch/env", True),)}))
    assert render(replace(policy(), data_sets={"samples": DataSetRule("/scratch/data")}), FACTS)  # seen at /data/samples


def test_tmpfs_that_would_be_an_oom_kill_is_refused() -> None:
    with pytest.raises(ConfigError, match="count as memory") as caught:
        render(policy(**{"tmp_bytes: 64MiB": "tmp_bytes: 1GiB"}), FACTS)
    assert "memory_bytes" in caught.value.hint


NODES = ("/dev/nvidia-caps/nvidia-cap3", "/dev/nvidia-uvm", "/dev/nvidia0", "/dev/nvidia1", "/dev/nvidiactl")


def test_devices_are_laid_into_a_dev_that_stays_closed() -> None:
    found = policy(**{"version: 1": "version: 1\ndevices: [nvidia]"})
    lines = step(found, replace(FACTS, nodes=NODES))
    first = lines.index("# devices: nvidia")
    assert lines[first : first + 13] == [
        "# devices: nvidia",
        "PrivateDevices=yes",
        "DevicePolicy=closed",
        *(line for node in NODES for line in (f"DeviceAllow={node} rw", f"BindPaths=-{node}")),
    ]
    assert sum("/dev/" in line for line in lines) == 10 + 1  # and /dev/shm


def test_without_the_word_no_device_is_written_even_if_the_host_has_one() -> None:
    assert not [line for line in step(policy(), replace(FACTS, nodes=NODES)) if "Device" in line or "/dev/nvidia" in line]


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        ((), "/dev/nvidiactl, /dev/nvidia-uvm, /dev/nvidia0 or another number"),
        (NODES[:4], "/dev/nvidiactl"),
        ((*NODES, "/dev/sda"), "its nodes and no other"),
        (("/dev/nvidia-modeset", *NODES), "its nodes and no other"),
        (("/dev/nvidia-caps/nvidia-cap1", *NODES), "its nodes and no other"),
        ((*NODES, "/dev/nvidia0/../sda"), "its nodes and no other"),
    ],
)
def test_devices_that_the_host_lacks_or_the_word_does_not_mean(nodes: tuple[str, ...], expected: str) -> None:
    found = policy(**{"version: 1": "version: 1\ndevices: [nvidia]"})
    with pytest.raises(ConfigError, match=f"expected {expected}") as caught:
        render(found, replace(FACTS, nodes=nodes))
    assert caught.value.code == "device-missing"


@pytest.mark.parametrize("text", ["[/dev/sda]", "[amd]", "[nvidia, nvidia]", "[nvidia0]"])
def test_a_policy_has_words_and_no_paths(text: str) -> None:
    with pytest.raises(ConfigError, match="devices"):
        policy(**{"version: 1": f"version: 1\ndevices: {text}"})
