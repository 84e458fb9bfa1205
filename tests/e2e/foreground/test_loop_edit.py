# SPDX-License-Identifier: Apache-2.0
"""The loop of a data scientist: the official command line as it stands, edit, trigger a round, see it, no restart."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from scaleoutd.core.manifest import MANIFEST_NAME
from scaleoutd.devcombiner.server import DevCombiner
from tests.e2e.foreground.person import Person


def test_the_official_command_line_works_as_it_stands(person: Person) -> None:
    person.start()
    assert b"eyJ" not in person.command_line, "the token is off the command line"
    connected = person.lines[person.wait_for("connected to combiner")]
    assert "without a client certificate" in connected and "my-project" in connected
    assert person.task(round_id="1").status == "COMPLETED"
    assert person.task("validate").status == "COMPLETED"
    person.wait_for("validation of ")  # the combiner hears of it before the person
    shown = [line for line in person.lines if "task received" in line or " sent: " in line]
    assert [line.split("agent: ")[1].split(",")[0].split(" of ")[0] for line in shown] == [
        "train task received", "update", "validate task received", "validation"
    ]  # fmt: skip


def test_the_project_may_lie_in_client_below_the_working_folder(tmp_path: Path, combiner: DevCombiner) -> None:
    with Person(tmp_path, combiner, subfolder="client") as person:
        person.start()
        assert person.task().status == "COMPLETED"


def test_an_edit_runs_in_the_next_task_without_a_restart(person: Person) -> None:
    person.start()
    person.task()
    person.edit("train.py", "first version", "second version")
    assert person.task().status == "COMPLETED"
    note = person.wait_for("re-signed, 1 file changed: train.py")
    assert person.wait_for("second version", after=note) > note
    person.task()
    assert person.text.count("re-signed") == 1, "what did not change is not signed again"


def test_a_mistake_and_its_repair_need_no_restart(person: Person) -> None:
    person.start()
    person.edit("scaleout.yaml", "entry_points", "entry_point")
    refused = person.task()
    assert (refused.status, "yaml-invalid" in refused.response) == ("FAILED", True)
    person.wait_for("[yaml-invalid]")
    assert "scaleout.yaml" in person.text and person.text.count("[yaml-invalid]") == 1, "one failure is told once"
    person.edit("scaleout.yaml", "entry_point", "entry_points")
    assert person.task().status == "COMPLETED"


def test_a_manifest_signed_for_production_is_not_replaced(person: Person, tmp_path: Path) -> None:
    person.start()
    person.task()
    person.project.sign()  # by a key of somebody else, for production
    signed = (person.project.folder / MANIFEST_NAME).read_bytes()
    person.edit("train.py", "first version", "second version")
    assert person.task().status == "FAILED"
    person.wait_for("signed for production")
    assert (person.project.folder / MANIFEST_NAME).read_bytes() == signed
    assert "second version" not in person.text


def test_a_denied_call_is_told_where_it_hurts(person: Person) -> None:
    person.edit(
        "train.py", 'print("first version", flush=True)', "import urllib.request; urllib.request.urlopen('https://x.org')"
    )
    person.start()
    assert person.task().status == "FAILED"
    line = person.lines[person.wait_for("! train.py:")]
    assert line.endswith("tried to open a network connection; this sandbox has no network")
    assert person.text.count("this sandbox has no network") == 1
    person.wait_for("[step-failed]")
    assert person.text.count("[step-failed]") == 1, "one failure is told once"


def test_a_deleted_manifest_is_no_older_version(person: Person) -> None:
    person.start()
    person.task()
    (person.project.folder / MANIFEST_NAME).unlink()
    assert person.task().status == "COMPLETED"


def test_enroll_then_start_by_its_file_and_again_by_the_cache(person: Person, combiner: DevCombiner) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "scaleoutd.cli.scaleoutd", "client", "enroll", "--enrollment-token", combiner.mint_enrollment(),
         "-u", combiner.api_url, "-n", "ward"],
        cwd=person.home, env=person.environment(), capture_output=True, text=True, check=True,
    )  # fmt: skip
    client_id = done.stdout.strip()
    config, cache = person.home / f"{client_id}.yaml", person.home / f".scaleout/tokens/{client_id}.json"
    assert done.stdout.count("\n") == 1 and "Enrolled successfully" in done.stderr
    assert config.stat().st_mode & 0o777 == 0o600 and cache.stat().st_mode & 0o777 == 0o600
    before = json.loads(cache.read_text())["refresh_token"]
    person.type("client", "start", "--init", str(config), "--local-package")
    person.wait_connected()
    assert person.client_id == client_id and person.task().status == "COMPLETED"
    after = json.loads(cache.read_text())["refresh_token"]
    assert after != before, "the rotated token lies where the official client finds it"
    person.press_ctrl_c()
    person.wait_end()
    person.type("client", "start", "--client-id", client_id, "--api-url", combiner.api_url, "--local-package")
    person.wait_for("using the token of")
    assert combiner.board.wait_until(lambda: client_id in combiner.board.connected(), 90), person.text
