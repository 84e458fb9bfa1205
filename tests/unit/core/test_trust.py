# SPDX-License-Identifier: Apache-2.0
"""The trust root: roles and thresholds, project patterns, revocation, and the chain from one root to the next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from scaleoutd.core.clock import Now
from scaleoutd.core.envelope import STATEMENT_TYPE, TRUST_ROOT_TYPE, serialise_envelope, sign_payload
from scaleoutd.core.keys import PrivateKey, public_key_of
from scaleoutd.core.trust import Role, RootPin, TrustedKey, parse_trust_root, sign_trust_root, verify_chain
from scaleoutd.errors import FormatError, VerificationError
from tests.unit.core.trust_samples import ALICE, AT_MS, BOB, DAY_MS, MALLORY, NOW, ROOT_KEY, keyid, make_root, root_bytes, trusted

NO_KEY = "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"
A, B, M = (public_key_of(key) for key in (ALICE, BOB, MALLORY))
TWO_RULES: dict[str, tuple[Sequence[PrivateKey], int]] = {"ml": ([ALICE], 1), "security": ([BOB], 1)}


def test_one_of_ml_and_one_of_security() -> None:
    root = make_root(TWO_RULES)
    assert root.authorize("heart", [A, B]) == {"ml": (A.keyid,), "security": (B.keyid,)}
    for signers in ([A], [B], [A, A], [A, M], []):
        with pytest.raises(VerificationError) as caught:
            root.authorize("heart", signers)
        assert caught.value.code == "signature-threshold"


def test_two_of_three() -> None:
    root = make_root({"ml": ([ALICE, BOB, MALLORY], 2)})
    assert root.authorize("heart", [A, M]) == {"ml": tuple(sorted((A.keyid, M.keyid)))}
    with pytest.raises(VerificationError, match="expected 2"):
        root.authorize("heart", [M])


def test_a_root_key_is_no_key_for_projects() -> None:
    with pytest.raises(VerificationError):
        make_root().authorize("heart", [public_key_of(ROOT_KEY)])


@pytest.mark.parametrize(
    ("project", "allowed"), [("heart", True), ("heart-2", True), ("lung", False), ("xheart", False), ("Heart", False)]
)
def test_a_key_signs_only_the_projects_of_its_patterns(project: str, allowed: bool) -> None:
    root = make_root(projects={keyid(ALICE): ("heart*",)})
    if allowed:
        root.authorize(project, [A])
    else:
        with pytest.raises(VerificationError):
            root.authorize(project, [A])


def test_a_revoked_key_counts_for_nothing_and_the_refusal_says_so() -> None:
    root = make_root({"ml": ([ALICE, BOB], 1)}, revoked_keys=(A.keyid,))
    with pytest.raises(VerificationError) as caught:
        root.authorize("heart", [A])
    assert caught.value.code == "key-revoked"
    assert root.authorize("heart", [A, B]) == {"ml": (B.keyid,)}


@pytest.mark.parametrize(
    "change",
    [
        {"keys": {keyid(BOB): trusted(ALICE)[1], **dict([trusted(ROOT_KEY)])}},
        {"keys": {keyid(ALICE): TrustedKey(NO_KEY), **dict([trusted(ROOT_KEY)])}},
        {"roles": {"ml": Role((keyid(ALICE),), 1), "x": Role((keyid(ROOT_KEY),), 1)}},
        {"roles": {"root": Role((keyid(ROOT_KEY),), 1)}},
        {"roles": {"root": Role((keyid(ROOT_KEY),), 2), "ml": Role((keyid(ALICE),), 1)}},
        {"roles": {"root": Role((keyid(ROOT_KEY),), 1), "ml": Role((keyid(ALICE),) * 2, 2)}},
        {"roles": {"root": Role((keyid(ROOT_KEY),), 1), "ml": Role((keyid(MALLORY),), 1)}},
        {"roles": {"root": Role((keyid(ROOT_KEY),), 1), "ml": Role((keyid(ALICE),), 1), "sec": Role((keyid(ALICE),), 1)}},
        {"roles": {"root": Role((keyid(ROOT_KEY),), 1), "m l": Role((keyid(ALICE),), 1)}},
        {"version": 0},
        {"revoked_keys": ("short",)},
    ],
    ids=["key-under-other-id", "bad-key", "no-root-role", "no-rule", "threshold-too-high", "key-twice", "unlisted-key",
         "one-key-two-rules", "bad-role-name", "version-0", "bad-revocation"],
)  # fmt: skip
def test_a_root_that_contradicts_itself_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(FormatError):
        parse_trust_root(replace(make_root(), **change).payload())
    parse_trust_root(make_root().payload())


def chain_of_three() -> list[bytes]:
    first = make_root(version=1)
    second = make_root(version=2, root_key=BOB)
    third = make_root(version=3, root_key=BOB)
    return [root_bytes(first), root_bytes(second, ROOT_KEY, BOB), root_bytes(third, BOB)]


def test_a_chain_with_a_key_change_verifies() -> None:
    assert verify_chain(chain_of_three(), NOW).version == 3
    assert verify_chain(chain_of_three()[:1], NOW).version == 1


@pytest.mark.parametrize(
    ("name", "documents"),
    [
        ("empty", []),
        ("new-root-not-signed-by-the-old", [root_bytes(make_root()), root_bytes(make_root(version=2, root_key=BOB), BOB)]),
        ("new-root-not-signed-by-itself", [root_bytes(make_root()), root_bytes(make_root(version=2, root_key=BOB), ROOT_KEY)]),
        ("gap", [root_bytes(make_root()), root_bytes(make_root(version=3))]),
        ("backwards", [root_bytes(make_root(version=2)), root_bytes(make_root())]),
        ("same-version-twice", [root_bytes(make_root()), root_bytes(make_root())]),
        ("unsigned", [root_bytes(make_root(), MALLORY)]),
        ("signed-by-a-revoked-root-key", [root_bytes(make_root(revoked_keys=(keyid(ROOT_KEY),)))]),
        ("expired", [root_bytes(make_root(expires_ms=AT_MS))]),
        ("development-into-production", [root_bytes(make_root()), root_bytes(make_root(version=2, development=True))]),
        ("a-manifest-envelope", [serialise_envelope(sign_payload(make_root().payload(), STATEMENT_TYPE, [ROOT_KEY]))]),
        ("not-canonical", [serialise_envelope(sign_payload(make_root().payload() + b"\n", TRUST_ROOT_TYPE, [ROOT_KEY]))]),
        ("garbage", [b"{}"]),
    ],
)
def test_a_chain_that_breaks_is_refused(name: str, documents: list[bytes]) -> None:
    with pytest.raises(VerificationError) as caught:
        verify_chain(documents, NOW)
    assert caught.value.code == "trust-root-invalid"


def test_only_the_last_roots_expiry_counts() -> None:
    old = root_bytes(make_root(expires_ms=AT_MS - DAY_MS))
    assert verify_chain([old, root_bytes(make_root(version=2))], NOW).version == 2
    with pytest.raises(VerificationError, match="expired"):
        verify_chain(chain_of_three(), Now(AT_MS + 101 * DAY_MS, 0, synchronised=True))


def test_a_version_below_the_floor_is_refused() -> None:
    assert verify_chain(chain_of_three(), NOW, floor_version=3).version == 3
    with pytest.raises(VerificationError, match="expected version 3 or later, found 2"):
        verify_chain(chain_of_three()[:2], NOW, floor_version=3)


def test_another_root_of_the_pinned_version_is_refused() -> None:
    good = RootPin(1, make_root().digest())
    assert verify_chain(chain_of_three(), NOW, pin=good).version == 3
    for pin in (RootPin(1, "0" * 64), RootPin(4, make_root().digest())):
        with pytest.raises(VerificationError) as caught:
            verify_chain(chain_of_three(), NOW, pin=pin)
        assert caught.value.code == "trust-root-invalid"


def test_a_root_is_not_signed_before_it_is_sound() -> None:
    with pytest.raises(FormatError):
        sign_trust_root(make_root(roles={"ml": ([ALICE], 1), "security": ([ALICE], 1)}), [ROOT_KEY])
