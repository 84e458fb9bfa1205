# SPDX-License-Identifier: Apache-2.0
"""The certificate of a model's signer: taken below the CA that was given, refused otherwise."""

from __future__ import annotations

from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from scaleoutd.cli.modelcertificate import signing_key
from scaleoutd.core.keys import PublicKey, public_key_of
from scaleoutd.errors import ScaleoutError
from tests.unit.cli.signed_model import CA_KEY, CLIENT_AUTH, CODE_SIGNING, KEY, MIDDLE_KEY, NOW, OTHER_KEY, certificate

ROOT = certificate("root", CA_KEY, "root", CA_KEY, is_ca=True)
MIDDLE = certificate("middle", MIDDLE_KEY, "root", CA_KEY, is_ca=True, path_length=0)


def _key_of(own: x509.Certificate, *others: x509.Certificate, given: tuple[x509.Certificate, ...] = (ROOT,)) -> PublicKey:
    chain = [item.public_bytes(serialization.Encoding.DER) for item in (own, *others)]
    return signing_key(chain, given, NOW)[0]


def own(issuer: str = "middle", issuer_key: Any = MIDDLE_KEY, **more: Any) -> x509.Certificate:
    return certificate("signer", KEY, issuer, issuer_key, **{"extended": CODE_SIGNING, **more})


def test_a_certificate_below_the_given_ca_is_accepted() -> None:
    assert _key_of(own("root", CA_KEY)) == public_key_of(KEY)
    assert _key_of(own(), MIDDLE) == public_key_of(KEY)
    assert _key_of(own(), given=(MIDDLE, ROOT)) == public_key_of(KEY)
    longer = certificate("root", CA_KEY, "root", CA_KEY, is_ca=True, path_length=1)
    assert _key_of(own(), MIDDLE, given=(longer,)) == public_key_of(KEY)


_STRANGER = certificate("root", OTHER_KEY, "root", OTHER_KEY, is_ca=True)
_FORBIDDEN = x509.NameConstraints([x509.DNSName("a.example")], None)


@pytest.mark.parametrize(
    ("chain", "given", "words"),
    [
        ((own(days=(-9, -1)), MIDDLE), (ROOT,), "is valid from"),  # model-signing takes it: it looks at the day it began
        ((own(days=(1, 9)), MIDDLE), (ROOT,), "is valid from"),
        ((own(), certificate("middle", MIDDLE_KEY, "root", CA_KEY, is_ca=True, days=(-9, -1))), (ROOT,), "is valid from"),
        ((own("root", CA_KEY),), (certificate("root", CA_KEY, "root", CA_KEY, is_ca=True, days=(-9, -1)),), "is valid from"),
        ((own("root", OTHER_KEY), _STRANGER), (ROOT,), "found none of 'CN=root'"),
        ((own(), MIDDLE), (_STRANGER,), "found none of 'CN=root'"),
        ((own(),), (ROOT,), "found none of 'CN=middle'"),
        ((own(),), (MIDDLE,), "expected a self-signed CA"),
        ((own(), certificate("middle", MIDDLE_KEY, "root", CA_KEY)), (ROOT,), "is no CA"),
        ((own(), MIDDLE), (certificate("root", CA_KEY, "root", CA_KEY, is_ca=True, path_length=0),), "may have 0 CAs below it"),
        (
            (own(), certificate("middle", MIDDLE_KEY, "root", CA_KEY, is_ca=True, extended=CLIENT_AUTH)),
            (ROOT,),
            "something else than codeSigning",
        ),
        ((own(), certificate("middle", MIDDLE_KEY, "root", CA_KEY, is_ca=True, more=(_FORBIDDEN,))), (ROOT,), "2.5.29.30"),
        ((own(extended=CLIENT_AUTH), MIDDLE), (ROOT,), "for something else"),
        ((own(extended=None), MIDDLE), (ROOT,), "for something else"),
        ((own(is_ca=True), MIDDLE), (ROOT,), "found the CA"),
        ((own(more=(_FORBIDDEN,)), MIDDLE), (ROOT,), "2.5.29.30"),
    ],
)
def test_another_certificate_is_refused(
    chain: tuple[x509.Certificate, ...], given: tuple[x509.Certificate, ...], words: str
) -> None:
    with pytest.raises(ScaleoutError) as caught:
        _key_of(*chain, given=given)
    assert caught.value.code == "signature-invalid"
    assert words in caught.value.message


def test_bytes_that_are_no_certificate_are_refused() -> None:
    with pytest.raises(ScaleoutError, match="cannot be read"):
        signing_key([b"0\x00"], [ROOT], NOW)
