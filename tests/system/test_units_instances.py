# SPDX-License-Identifier: Apache-2.0
"""Step instances that die or are out of date: what a killed launcher leaves is cleared, old spares are dropped, a view that
cannot be built and a policy that was not applied are told with their code."""

from __future__ import annotations

import json

from tests.system.guest import Guest
from tests.system.hospital import ETC, GATE, Hospital
from tests.system.image import BOOKWORM, TRIXIE
from tests.system.promises import check_node, check_task

SUITES = (BOOKWORM, TRIXIE)

STEP_DROP_IN = "/etc/systemd/system/scaleoutd-step@.service.d/50-policy.conf"


def test_a_launcher_killed_in_the_run_leaves_nothing_and_the_task_is_done_once(hospital: Hospital) -> None:
    guest = hospital.guest
    with hospital.step_held() as held:
        task = hospital.offer()
        held()
        unit = guest.run("systemctl list-units --plain --no-legend 'scaleoutd-step@*' | awk '{ print $1 }'").stdout.split()
        running = next(name for name in unit if "scaleoutd-step-" in guest.run(["ps", "-o", "user:32=", *pids(guest, name)]).text)
        guest.run(["systemctl", "kill", "--kill-whom=main", "--signal=KILL", running])
        guest.wait_unit(running, "inactive failed")
    check_task(hospital, task)
    check_node(hospital)
    assert check_task(hospital, hospital.offer()) == "COMPLETED"


def pids(guest: Guest, unit: str) -> list[str]:
    control = guest.show(unit, "ControlGroup")["ControlGroup"]
    return guest.run(
        f"cat $(find /sys/fs/cgroup/systemd{control} /sys/fs/cgroup{control} -name cgroup.procs 2>/dev/null)"
    ).stdout.split()


def test_spares_of_the_policy_before_are_dropped(hospital: Hospital) -> None:
    guest = hospital.guest
    before = guest.run("until pgrep -o -u scaleoutd-launch; do sleep 0.05; done").text
    digest = guest.run("sha256sum </etc/scaleoutd/policy.lock").text
    policy = guest.read(f"{ETC}/policy.yaml")
    guest.write(f"{ETC}/policy.yaml", policy.replace("loss", "another_loss"))
    guest.run("scaleoutctl policy apply")
    assert guest.run("sha256sum </etc/scaleoutd/policy.lock").text != digest  # it is another policy
    assert check_task(hospital, hospital.offer()) == "COMPLETED"
    assert guest.run(["ps", "-p", before], check=False).status != 0
    guest.write(f"{ETC}/policy.yaml", policy)
    guest.run("scaleoutctl policy apply")


def test_a_policy_that_was_not_applied_to_the_units_runs_nothing(hospital: Hospital) -> None:
    guest = hospital.guest
    drop_in = guest.read(STEP_DROP_IN)
    guest.write(STEP_DROP_IN, drop_in.replace("POLICY_DIGEST=", "POLICY_DIGEST=0"))
    guest.run("systemctl daemon-reload && systemctl stop 'scaleoutd-step@*'")
    try:
        task = hospital.offer()
        offer = hospital.wait(task)
        assert json.loads(offer.response)["code"] == "policy-mismatch"
    finally:
        guest.write(STEP_DROP_IN, drop_in)
        guest.run("systemctl daemon-reload && systemctl stop 'scaleoutd-step@*'")
    assert check_task(hospital, hospital.offer()) == "COMPLETED"


def test_a_data_set_that_is_gone_is_told(hospital: Hospital) -> None:
    guest = hospital.guest
    guest.run(f"systemctl stop 'scaleoutd-step@*'; mv {GATE} {GATE}.away")
    try:
        offer = hospital.wait(hospital.offer())
        assert json.loads(offer.response)["code"] in ("data-set-mismatch", "step-unavailable")
    finally:
        guest.run(f"mv {GATE}.away {GATE}; systemctl stop 'scaleoutd-step@*'")
    assert check_task(hospital, hospital.offer()) == "COMPLETED"
