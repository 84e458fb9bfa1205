# SPDX-License-Identifier: Apache-2.0
"""The trail of a finished run, read with the programs that people have: what ran, on which code, with which model, what left.

And what must not be in it: secrets, and the text of what steps print or of tracebacks.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from scaleoutd.devcombiner.server import DevCombiner
from scaleoutd.runner.runs import run_name
from tests.e2e.site import ROOT, Site
from tests.unit.core.test_event import as_1_8, validator

PRINTED = "patient-row-77aa31"
BODY = f"""
print("{PRINTED}")
if json.load(open(source + "-metadata")).get("fail"):
    raise ValueError("{PRINTED} in a traceback")
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Site, dict[str, Any]]]:
    """A site whose node has trained, validated and failed once, and has ended; and what the combiner saw."""
    with DevCombiner() as combiner, Site(tmp_path_factory.mktemp("site"), combiner, train_body=BODY) as site:
        node = site.start()
        token = node.token
        trained = site.task()
        site.task("validate")
        failed = site.task(client_settings={"fail": True})
        assert node.stop() == 0
        (update,) = combiner.updates
        saved = combiner.store.read(update.model_update_id)
        seen = {"trained": trained, "failed": failed, "update": update, "bytes": saved, "token": token, "log": node.text}
        yield site, seen


def segment(site: Site) -> Path:
    (path,) = sorted((site.state / "audit").glob("*.jsonl"))
    return path


def jq(site: Site, program: str) -> list[Any]:
    """What the program prints; one JSON value a line."""
    found = subprocess.run(["jq", "-c", program, str(segment(site))], capture_output=True, text=True, check=True)
    return [json.loads(line) for line in found.stdout.splitlines()]


def test_jq_says_what_ran_on_which_code_with_which_model_and_what_left(finished: tuple[Site, dict[str, Any]]) -> None:
    site, seen = finished
    run = run_name(seen["trained"].correlation_id)
    (began,) = jq(
        site, f'select(.metadata.event_code == "run-about-to-start" and .unmapped.event.run == "{run}") | .unmapped.event'
    )
    assert began["command"][:2] == ["python", "train.py"]
    assert (began["project"], began["manifest_version"]) == ("echo", 1)
    (proven,) = set(jq(site, 'select(.metadata.event_code == "manifest-verified") | .unmapped.event.manifest_sha256'))
    assert began["manifest_sha256"] == proven
    (received,) = jq(
        site, f'select(.metadata.event_code == "model-received" and .unmapped.event.run == "{run}") | .unmapped.event'
    )
    assert began["model_sha256"] == received["sha256"]
    left = jq(site, f'select(.unmapped.event.run == "{run}" and .metadata.event_code == "release") | .unmapped.event')
    assert [item["destination"] for item in left] == [f"localhost:{site.combiner.grpc_port}"]  # type: ignore[union-attr]


def test_what_the_combiner_has_is_what_the_trail_says_left(finished: tuple[Site, dict[str, Any]]) -> None:

    site, seen = finished
    run = run_name(seen["trained"].correlation_id)
    digest = hashlib.sha256(seen["bytes"]).hexdigest()
    for name in ("computed", "release", "sending", "sent"):
        events = [event for event in site.events(name) if event["run"] == run]
        assert {event["sha256"] for event in events} == {digest}, name


def test_sqlite_answers_the_same_from_the_lines_as_they_are(finished: tuple[Site, dict[str, Any]]) -> None:
    site, _ = finished
    lines = f"'[' || replace(rtrim(readfile('{segment(site)}'), char(10)), char(10), ',') || ']'"
    query = (
        "SELECT value ->> '$.unmapped.event.task', value ->> '$.unmapped.event.manifest_sha256',"
        f" value ->> '$.unmapped.event.model_sha256' FROM json_each({lines})"
        " WHERE value ->> '$.metadata.event_code' = 'run-about-to-start';"
    )
    done = subprocess.run(["sqlite3", ":memory:", query], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = [line.split("|") for line in done.stdout.splitlines()]
    assert [row[0] for row in rows] == ["train", "validate", "train"]
    assert all(len(row[1]) == len(row[2]) == 64 for row in rows)


def test_every_line_is_valid_ocsf(finished: tuple[Site, dict[str, Any]]) -> None:
    site, _ = finished
    for line in segment(site).read_bytes().splitlines():
        validator(json.loads(line)["class_uid"]).validate(as_1_8(line))


def verify(folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "scaleoutd.cli.scaleoutctl", "audit", "verify", str(folder), *more]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)


def test_a_copy_verifies_offline_and_one_flipped_bit_is_named(finished: tuple[Site, dict[str, Any]], tmp_path: Path) -> None:
    site, _ = finished
    copy = tmp_path / "copy"
    shutil.copytree(site.state / "audit", copy, ignore=shutil.ignore_patterns("*.key"))
    key = tmp_path / "epoch-1.vkey"
    shutil.copy(copy / "keys" / "epoch-1.vkey", key)
    good = verify(copy, "--key", str(key), "--json")
    assert good.returncode == 0 and json.loads(good.stdout)["ok"], good.stdout + good.stderr
    (path,) = copy.glob("*.jsonl")
    lines = path.read_bytes().split(b"\n")
    lines[7] = lines[7].replace(b'"severity_id":1', b'"severity_id":3', 1)
    path.chmod(0o600)
    path.write_bytes(b"\n".join(lines))
    bad = verify(copy, "--key", str(key), "--json")
    told = json.loads(bad.stdout)
    assert bad.returncode == 65 and not told["ok"]
    assert told["fault"]["sequence"] == json.loads(lines[7])["metadata"]["sequence"]


def test_no_secret_and_no_printed_text_is_in_trail_log_or_report(finished: tuple[Site, dict[str, Any]]) -> None:
    site, seen = finished
    text = segment(site).read_text()
    key = Path(site.nodes[0].arguments[list(site.nodes[0].arguments).index("--key") + 1]).read_text()
    secrets = [seen["token"], key.splitlines()[1]]
    cached = json.loads((site.state / "agent" / "token.json").read_text())
    secrets += [value for value in cached.values() if isinstance(value, str) and len(value) > 40]
    assert len(secrets) >= 3
    for secret in secrets:
        assert secret not in text and secret not in seen["log"]
    assert PRINTED not in text
    assert PRINTED not in seen["failed"].response and "Traceback" not in seen["failed"].response
    assert json.loads(seen["failed"].response)["code"] == "step-failed"
    run = run_name(seen["failed"].correlation_id)
    assert PRINTED in (site.state / "runner" / "output" / f"{run}.log").read_text(), "control: the step did print it"
