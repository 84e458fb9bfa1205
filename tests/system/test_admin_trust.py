# SPDX-License-Identifier: Apache-2.0
"""Whom an installed node trusts, over its life: a rotated key, a root that somebody else put there, and a reset by root.

The owner of the trust root signs by the same commands in a folder of their own, which is not the node's.  An attacker has the
node's files (as root would) and keys of their own, and not the owner's word: what they put there must not count.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from scaleoutd.core.envelope import TRUST_ROOT_TYPE, parse_envelope, serialise_envelope
from scaleoutd.core.keys import public_key_of
from scaleoutd.core.trust import Role, TrustedKey, TrustRoot, parse_trust_root, sign_trust_root
from tests.e2e.site import YEAR_MS, Project, now_ms
from tests.system.guest import Guest
from tests.system.hospital import BROUGHT, ETC, PROJECT, Hospital
from tests.system.promises import check_node, check_task

OWNER, NODES = "/root/owner", f"{ETC}/trust"
REASON = "all root keys were lost in the fire"


@pytest.fixture(scope="module")
def hospital(node: Guest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hospital]:
    node.run("useradd --no-create-home -G scaleoutd-admin kim")
    with Hospital(node, tmp_path_factory.mktemp("site")) as site:
        site.bring()
        site.start()
        node.run(f"mkdir -m 700 {OWNER} && cp -r {NODES} {OWNER}/trust")
        node.write(f"{OWNER}/first.key", pem(site.project.key), mode=0o600)
        yield site


def pem(key: Ed25519PrivateKey) -> bytes:
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def root_of(hospital: Hospital, number: int) -> TrustRoot:
    """One of those that lie on the node now."""
    return parse_trust_root(parse_envelope(hospital.guest.read_bytes(f"{NODES}/{number}.json"), TRUST_ROOT_TYPE).payload)


def made(key: Ed25519PrivateKey, version: int, signers: Sequence[Ed25519PrivateKey] = ()) -> bytes:
    """A root in which this key alone is everything."""
    public = public_key_of(key)
    role = Role((public.keyid,), 1)
    keys = {public.keyid: TrustedKey(public.pem, name="somebody")}
    root = TrustRoot("scaleoutd-trust-root-v1", version, now_ms() + YEAR_MS, keys, {"root": role, "ml": role})
    return serialise_envelope(sign_trust_root(root, list(signers or [key])))


def put(hospital: Hospital, chain: dict[int, bytes]) -> None:
    """The node's folder holds this chain and nothing else."""
    hospital.guest.run(f"rm -f {NODES}/*.json")
    for number, document in chain.items():
        hospital.guest.write(f"{NODES}/{number}.json", document)


def chain_now(hospital: Hospital) -> dict[int, bytes]:
    names = hospital.guest.run(["ls", NODES]).text.split()
    return {int(Path(name).stem): hospital.guest.read_bytes(f"{NODES}/{name}") for name in names}


def sign_as(hospital: Hospital, key: Ed25519PrivateKey) -> None:
    """The next version of the project, signed by this key, in the place of what is installed, whoever accepts it."""
    hospital.project.version += 1
    hospital.project.key = key
    hospital.project.sign()
    hospital.guest.push(hospital.project.folder, f"{BROUGHT}/project-{hospital.project.version}")


def install(hospital: Hospital) -> None:
    hospital.guest.run(f"scaleoutctl project install {BROUGHT}/project-{hospital.project.version}")


def pins(hospital: Hospital) -> set[tuple[int, str]]:
    """Version and digest of the root that the runner keeps, and that the trail, which is the ledger's memory, has last."""
    kept = json.loads(hospital.guest.read("/var/lib/scaleoutd/runner/floors.json"))
    last = hospital.trail("trust-root-accepted", "trust-root-reset")[-1]
    return {(kept["root_version"], kept["root_sha256"]), (last["root_version"], last["root_sha256"])}


def refused(hospital: Hospital) -> dict[str, Any]:
    """A task that must not run, and the finding on record."""
    task = hospital.offer()
    code = check_task(hospital, task)
    story = [event for event in hospital.trail() if event.get("correlation_id") == task]
    assert "run-about-to-start" not in [event["type"] for event in story]
    (finding,) = [event for event in story if event["type"] == "manifest-refused"]
    assert finding["code"] == code and finding["hint"]
    return finding


def completes(hospital: Hospital) -> None:
    assert check_task(hospital, hospital.offer()) == "COMPLETED", hospital.told()


# --- rotation -----------------------------------------------------------------------------------------------------


def test_the_first_root_is_pinned_by_its_digest_in_runner_and_ledger(hospital: Hospital) -> None:
    completes(hospital)
    assert pins(hospital) == {(1, root_of(hospital, 1).digest())}


def test_a_rotated_key_counts_from_the_next_task_on_and_the_old_one_no_more(hospital: Hospital) -> None:
    guest = hospital.guest
    first = root_of(hospital, 1)
    guest.run("scaleoutctl keygen --name second", cwd=OWNER)
    rotate = "scaleoutctl trust rotate trust --old tester --new second.pub"
    told = json.loads(guest.run(f"{rotate} --sign-with first.key --json", cwd=OWNER).stdout)
    assert told["missing"], "a new root key signs too"
    guest.run(f"scaleoutctl trust sign trust --sign-with second.key && cp trust/2.json {NODES}/", cwd=OWNER)
    assert refused(hospital)["code"] == "signature-threshold"  # what the old key signed
    sign_as(hospital, serialization.load_pem_private_key(guest.read_bytes(f"{OWNER}/second.key"), None))  # type: ignore[arg-type]
    install(hospital)
    completes(hospital)
    second = root_of(hospital, 2)
    assert pins(hospital) == {(2, second.digest())}
    accepted = [
        (event["root_version"], event["root_sha256"], event.get("previous_sha256"))
        for event in hospital.trail("trust-root-accepted")
    ]
    assert accepted == [(1, first.digest(), None), (2, second.digest(), first.digest())]
    hospital.rounds(2)  # a whole session under the new root
    check_node(hospital)


# --- without a word of root's -------------------------------------------------------------------------------------

ATTACKER = Ed25519PrivateKey.generate()
FORGED: dict[str, Callable[[dict[int, bytes]], dict[int, bytes]]] = {
    "the old root alone": lambda chain: {1: chain[1]},
    "a root of the same number": lambda chain: {1: chain[1], 2: made(ATTACKER, 2)},
    "a root of the same number, alone": lambda chain: {2: made(ATTACKER, 2)},
    "a next root that no one of the chain signed": lambda chain: {**chain, 3: made(ATTACKER, 3)},
    "a newer root, alone": lambda chain: {3: made(ATTACKER, 3)},
    "a chain of their own": lambda chain: {number: made(ATTACKER, number) for number in (1, 2, 3)},
    "the first of the chain left out": lambda chain: {2: chain[2], 3: made(ATTACKER, 3)},
}


@pytest.mark.parametrize("how", FORGED)
def test_another_root_in_the_place_of_the_nodes_is_refused(hospital: Hospital, how: str) -> None:
    good, pinned = chain_now(hospital), pins(hospital)
    put(hospital, FORGED[how](good))
    finding = refused(hospital)
    assert finding["code"] == "trust-root-invalid", finding
    assert pins(hospital) == pinned
    put(hospital, good)
    completes(hospital)


def test_an_attackers_project_with_the_attackers_root_does_not_run(hospital: Hospital, tmp_path: Path) -> None:
    """Both are in their place, as only root can put them: it is the pin that holds."""
    guest, good, current = hospital.guest, chain_now(hospital), f"{PROJECT}/current"
    project = Project(tmp_path / "attack", ATTACKER, version=99, data_sets=("gate",))
    project.write("raise SystemExit('it ran')")
    project.sign()
    guest.push(project.folder, f"{PROJECT}/releases/attack")
    installed = guest.run(["readlink", current]).text
    guest.run(f"chgrp -R --reference=$(readlink -f {current}) {PROJECT}/releases/attack && ln -sfn releases/attack {current}")
    assert refused(hospital)["code"] == "signature-threshold"
    put(hospital, {3: made(ATTACKER, 3)})
    assert refused(hospital)["code"] == "trust-root-invalid"
    guest.run(f"ln -sfn {installed} {current} && rm -r {PROJECT}/releases/attack")
    put(hospital, good)
    completes(hospital)


def test_neither_a_restart_nor_a_runner_without_its_memory_takes_it(hospital: Hospital) -> None:
    """The ledger remembers what the runner's state no longer has."""
    guest, good = hospital.guest, chain_now(hospital)
    put(hospital, {2: made(ATTACKER, 2)})
    guest.run("systemctl stop scaleoutd-runner.socket scaleoutd-runner.service && rm /var/lib/scaleoutd/runner/floors.json")
    guest.run("systemctl start scaleoutd.service scaleoutd-ledger.service", timeout_s=90)
    hospital.wait_connected()
    assert refused(hospital)["code"] == "trust-root-invalid"
    put(hospital, good)
    completes(hospital)
    assert pins(hospital) == {(2, root_of(hospital, 2).digest())}


# --- a reset ------------------------------------------------------------------------------------------------------


def test_only_root_resets_and_only_with_a_reason(hospital: Hospital) -> None:
    pinned = pins(hospital)
    for user, words in (("kim", f"--reason '{REASON}'"), ("scaleoutd-runner", f"--reason '{REASON}'"), ("root", "")):
        ran = hospital.guest.run(f"scaleoutctl trust reset {words}", user=user, check=False)
        assert ran.status != 0 and "Traceback" not in ran.stderr, ran.told
    assert pins(hospital) == pinned and not hospital.trail("trust-root-reset")


def test_after_a_reset_the_new_root_counts_and_the_old_one_does_not(hospital: Hospital) -> None:
    guest, old = hospital.guest, chain_now(hospital)
    before = root_of(hospital, 2)
    key = Ed25519PrivateKey.generate()
    guest.write(f"{OWNER}/new.json", made(key, 1))
    put(hospital, {1: guest.read_bytes(f"{OWNER}/new.json")})
    sign_as(hospital, key)
    ran = guest.run(f"scaleoutctl project install {BROUGHT}/project-{hospital.project.version}", check=False)
    assert ran.status != 0 and "trust-root-invalid" in ran.told, ran.told
    assert refused(hospital)["code"] == "trust-root-invalid"  # without the reset
    told = json.loads(guest.run(f"scaleoutctl trust reset --reason '{REASON}' --json").stdout)
    new = root_of(hospital, 1)
    assert told == {"changed": True, "clock": False, "root_version": 1, "root_sha256": new.digest()}
    assert pins(hospital) == {(1, new.digest())}
    install(hospital)
    completes(hospital)
    (reset,) = hospital.trail("trust-root-reset")
    assert reset.items() >= {
        "root_version": 1, "root_sha256": new.digest(), "previous_version": 2, "previous_sha256": before.digest(),
        "reason": REASON, "operator": "root",
    }.items()  # fmt: skip
    (command,) = [event for event in hospital.trail("operator-command") if event["command"] == "reset-trust"]
    assert (command["operator"], command["peer_uid"], command["reason"]) == ("root", 0, REASON)
    put(hospital, old)
    assert refused(hospital)["code"] == "trust-root-invalid"  # it was the good one before


def test_a_reset_outlives_every_room(hospital: Hospital) -> None:
    guest = hospital.guest
    guest.run("systemctl stop scaleoutd.service && systemctl start scaleoutd.service", timeout_s=90)
    hospital.wait_connected()
    assert refused(hospital)["code"] == "trust-root-invalid"  # the old one still lies there
    put(hospital, {1: guest.read_bytes(f"{OWNER}/new.json")})
    completes(hospital)
    assert pins(hospital) == {(1, root_of(hospital, 1).digest())}
    hospital.rounds(2)
    check_node(hospital)
