# SPDX-License-Identifier: Apache-2.0
"""Which trust root a node accepted: another one of the same number, a chain that passes it by, a state that was put back, and
the one way to break with it, a recorded command of root.  The step really runs in each control."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from scaleoutd.core.clock import Floors
from scaleoutd.core.envelope import serialise_envelope
from scaleoutd.core.trust import TrustRoot, sign_trust_root, verify_chain
from scaleoutd.errors import LedgerError, ScaleoutError
from scaleoutd.ipc import messages
from scaleoutd.ipc.control import Operator, ResetTrust
from scaleoutd.runner.control import RunnerDesk
from tests.unit.core.trust_samples import ROOT_KEY, keyid, trusted
from tests.unit.runner.taken_agent import Bench

ROOT, CLERK = Operator(0, 1, "root"), Operator(1000, 1, "kim")


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with Bench(tmp_path) as made:
        yield made


def root_of(bench: Bench) -> TrustRoot:
    from scaleoutd.cli.signing import now

    return verify_chain([(bench.folder / "root.json").read_bytes()], now())


def install(bench: Bench, *roots: TrustRoot) -> None:
    """As root.json, or as the folder of a chain of that name."""
    path = bench.folder / "root.json"
    documents = [serialise_envelope(sign_trust_root(root, [bench.project.key])) for root in roots]
    if len(documents) == 1 and path.is_file():
        path.write_bytes(documents[0])
        return
    path.unlink()
    path.mkdir()
    for root, document in zip(roots, documents, strict=True):
        (path / f"{root.version}.json").write_bytes(document)


def other(root: TrustRoot, version: int) -> TrustRoot:
    """One that trusts somebody else too, and the project's signer as before."""
    return replace(root, version=version, keys={**root.keys, **dict([trusted(ROOT_KEY, name="somebody else")])})


def refused(bench: Bench, correlation_id: str) -> str:
    """The finding on record."""
    agent = bench.agent()
    agent.offer(correlation_id)
    with pytest.raises(ScaleoutError):
        agent.answer()
    bench.settle()
    assert bench.times_run(correlation_id) == 0
    finding = bench.recorded("manifest-refused")[-1]
    assert finding["hint"]
    return str(finding["code"])


def test_another_root_of_the_same_version_is_refused(bench: Bench) -> None:
    bench.complete("c1")
    first = root_of(bench)
    install(bench, other(first, 1))
    assert refused(bench, "c2") == "trust-root-invalid"
    assert "not the one accepted before" in bench.recorded("manifest-refused")[-1]["message"]
    install(bench, first)
    bench.complete("c3")  # the control: the one that was accepted
    assert [body["root_sha256"] for body in bench.recorded("trust-root-accepted")] == [first.digest()]


def test_a_newer_root_must_come_with_the_chain_that_leads_to_it(bench: Bench) -> None:
    bench.complete("c1")
    first = root_of(bench)
    install(bench, other(first, 2))  # signed by the same root key, and alone
    assert refused(bench, "c2") == "trust-root-invalid"
    install(bench, first, other(first, 2))
    bench.complete("c3")
    assert [body["root_version"] for body in bench.recorded("trust-root-accepted")] == [1, 2]
    assert bench.recorded("trust-root-accepted")[1]["previous_sha256"] == first.digest()


def test_the_ledgers_memory_is_enough_when_the_runners_state_was_put_back(bench: Bench) -> None:
    first = root_of(bench)
    bench.ledger.floors_answer = messages.Floors(0, 1, {}, first.digest())
    install(bench, other(first, 1))
    assert not (bench.state / "floors.json").exists()
    assert refused(bench, "c1") == "trust-root-invalid"
    install(bench, first)
    bench.complete("c2")


def test_two_rooms_that_know_different_roots_run_nothing(bench: Bench) -> None:
    bench.complete("c1")
    bench.ledger.floors_answer = messages.Floors(0, 1, {}, "0" * 64)
    assert refused(bench, "c2") == "trust-root-invalid"
    assert "two roots of version 1" in bench.recorded("manifest-refused")[-1]["message"]


def test_a_recorded_reset_takes_the_new_root_and_its_chain_counts_from_then_on(bench: Bench) -> None:
    bench.complete("c1")
    first = root_of(bench)
    second = other(first, 1)
    install(bench, second)
    assert refused(bench, "c2") == "trust-root-invalid"
    word = ResetTrust("the root key was lost", second.version, second.digest())
    desk = RunnerDesk(bench.runner)
    with pytest.raises(ScaleoutError, match="only root"):
        desk.do(word, CLERK, {})
    with pytest.raises(ScaleoutError, match="the runner finds root"):
        desk.do(replace(word, root_sha256="0" * 64), ROOT, {})
    with pytest.raises(ScaleoutError, match="ledger to have on record"):
        desk.do(word, ROOT, {})  # root has not told the ledger
    bench.ledger.floors_answer = messages.Floors(0, 1, {}, second.digest())
    bench.ledger.fail_on("operator-command")
    with pytest.raises(LedgerError):
        desk.do(word, ROOT, {})
    bench.ledger.heal()
    assert bench.runner.room.own_floors().root_sha256 == first.digest()  # no record, no reset
    assert refused(bench, "c2b") == "trust-root-invalid"  # the two rooms disagree
    assert desk.do(word, ROOT, {}).changed
    (command,) = bench.recorded("operator-command")
    assert (command["command"], command["operator"], command["peer_uid"], command["reason"]) == (
        "reset-trust", "root", 0, "the root key was lost",
    )  # fmt: skip
    bench.complete("c3")
    install(bench, first)
    assert refused(bench, "c4") == "trust-root-invalid"


def test_a_wrong_latest_time_is_lowered_by_a_recorded_command_and_never_raised(bench: Bench) -> None:
    room = bench.runner.room
    bench.complete("c1")
    ahead_ms = room.now().wall_ms + 10**9
    bench.ledger.floors_answer = messages.Floors(0, 0, {})
    from scaleoutd.runner.room import write_floors

    write_floors(bench.state / "floors.json", replace(room.own_floors(), time_ms=ahead_ms))
    assert refused(bench, "c2") == "clock-set-back"
    with pytest.raises(ScaleoutError, match="only root"):
        RunnerDesk(bench.runner).do(ResetTrust("battery", clock=True), CLERK, {})
    bench.ledger.floors_answer = messages.Floors(ahead_ms, 0, {})
    with pytest.raises(ScaleoutError, match="ledger to have on record"):
        RunnerDesk(bench.runner).do(ResetTrust("battery", clock=True), ROOT, {})
    bench.ledger.floors_answer = messages.Floors(0, 0, {})
    assert RunnerDesk(bench.runner).do(ResetTrust("battery", clock=True), ROOT, {}).changed
    (command,) = bench.recorded("operator-command")
    assert (command["command"], command["reason"]) == ("reset-trust", "battery")
    bench.complete("c3")
    before = room.own_floors()
    write_floors(bench.state / "floors.json", replace(before, time_ms=5))
    RunnerDesk(bench.runner).do(ResetTrust("again", clock=True), ROOT, {})
    assert room.own_floors().time_ms == 5


def test_floors_of_an_older_version_have_no_digest_and_the_next_root_is_taken(bench: Bench) -> None:
    bench.runner.room.state.mkdir(exist_ok=True)
    (bench.state / "floors.json").write_bytes(b'{"manifest_versions":{},"root_version":1,"time_ms":0}')
    assert bench.runner.room.own_floors() == Floors(0, 1, {})
    bench.complete("c1")
    assert bench.runner.room.own_floors().root_sha256 == root_of(bench).digest()
    assert keyid(bench.project.key) in root_of(bench).keys
