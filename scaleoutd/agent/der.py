# SPDX-License-Identifier: Apache-2.0
"""The few facts of an X.509 certificate that the trail wants, read from its DER (X.690, RFC 5280 section 4.1).

It proves nothing: OpenSSL has verified the server's certificate before it comes here, and ours is our own.  A certificate
library would cost this room a quarter of its memory for five fields.  Every length is checked against what holds it.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from dataclasses import dataclass
from datetime import datetime

from scaleoutd.errors import FormatError

_INTEGER, _OID, _UTC_TIME, _GENERALIZED_TIME, _BMP_STRING = 0x02, 0x06, 0x17, 0x18, 0x1E
_SEQUENCE, _SET, _VERSION = 0x30, 0x31, 0xA0
_MAX_OID_BYTES = 64  # a number grows by 7 bits a byte, so its arithmetic is quadratic
_NAMES = {
    "2.5.4.3": "CN", "2.5.4.6": "C", "2.5.4.7": "L", "2.5.4.8": "ST", "2.5.4.10": "O", "2.5.4.11": "OU",
    "0.9.2342.19200300.100.1.25": "DC", "0.9.2342.19200300.100.1.1": "UID",
}  # fmt: skip
_BEGIN, _END = b"-----BEGIN CERTIFICATE-----", b"-----END CERTIFICATE-----"


@dataclass(frozen=True)
class CertificateFacts:
    """Times are naive and UTC; the subject is in the form of RFC 4514, the serial number in hex."""

    serial: str
    subject: str
    not_before: datetime
    not_after: datetime
    spki_sha256: str


def first_of_pem(data: bytes) -> bytes:
    """DER of the first certificate in a PEM file."""
    begin = data.find(_BEGIN)
    end = data.find(_END, begin) if begin >= 0 else -1
    if end < 0:
        raise _refuse("there is no PEM certificate in it")
    try:
        return base64.b64decode(b"".join(data[begin + len(_BEGIN) : end].split()), validate=True)
    except binascii.Error as exc:
        raise _refuse("its PEM is broken") from exc


def certificate_facts(der: bytes) -> CertificateFacts:
    """FormatError `key-invalid` for what is not a certificate."""
    try:
        certificate = _Reader(der).enter(_SEQUENCE)
        body = certificate.enter(_SEQUENCE)
        if body.tag() == _VERSION:
            body.take()
        serial = int.from_bytes(body.take(_INTEGER), "big")
        body.take(_SEQUENCE)  # signature algorithm
        body.take(_SEQUENCE)  # issuer
        validity = body.enter(_SEQUENCE)
        first, last = _time(validity), _time(validity)
        subject = _name(body.enter(_SEQUENCE))
        spki = body.take_whole(_SEQUENCE)
    except (IndexError, ValueError) as exc:
        raise _refuse(str(exc) or "it ends too early") from exc
    return CertificateFacts(f"{serial:x}", subject, first, last, hashlib.sha256(spki).hexdigest())


class _Reader:
    """Elements one after the other; IndexError or ValueError when they do not fit."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def more(self) -> bool:
        return self._at < len(self._data)

    def tag(self) -> int:
        return self._data[self._at]

    def take(self, tag: int | None = None) -> bytes:
        """Content of the next element."""
        _, content, end = self._bounds(tag)
        self._at = end
        return self._data[content:end]

    def take_whole(self, tag: int) -> bytes:
        """The next element with its tag and length."""
        start, _, end = self._bounds(tag)
        self._at = end
        return self._data[start:end]

    def enter(self, tag: int) -> _Reader:
        return _Reader(self.take(tag))

    def _bounds(self, tag: int | None) -> tuple[int, int, int]:
        data, start = self._data, self._at
        if tag is not None and data[start] != tag:
            raise ValueError(f"tag {tag:#04x} is expected, {data[start]:#04x} found")
        length, content = data[start + 1], start + 2
        if length & 0x80:
            count = length & 0x7F
            if not 1 <= count <= 4:
                raise ValueError("a length is not in DER")
            length, content = int.from_bytes(data[content : content + count], "big"), content + count
        if content + length > len(data):
            raise ValueError("a length is beyond the end")
        return start, content, content + length


def _time(validity: _Reader) -> datetime:
    tag = validity.tag()
    text = validity.take().decode("ascii")
    if tag == _UTC_TIME:
        # RFC 5280 section 4.1.2.5.1: 50 to 99 are of the last century.
        text = ("19" if text[:2] >= "50" else "20") + text
    elif tag != _GENERALIZED_TIME:
        raise ValueError("the validity is no time")
    return datetime.strptime(text, "%Y%m%d%H%M%SZ")  # noqa: DTZ007


def _name(names: _Reader) -> str:
    parts: list[str] = []
    while names.more():
        relative, values = names.enter(_SET), []
        while relative.more():
            pair = relative.enter(_SEQUENCE)
            oid = _dotted(pair.take(_OID))
            encoding = "utf-16-be" if pair.tag() == _BMP_STRING else "utf-8"
            value = pair.take().decode(encoding, "backslashreplace")
            values.append(f"{_NAMES.get(oid, oid)}={_escaped(value)}")
        parts.append("+".join(values))
    return ",".join(reversed(parts))


def _dotted(data: bytes) -> str:
    numbers, value = [], 0
    if len(data) > _MAX_OID_BYTES:
        raise ValueError("an object identifier is too long")
    for byte in data:
        value = value << 7 | byte & 0x7F
        if not byte & 0x80:
            numbers.append(value)
            value = 0
    head = min(numbers[0] // 40, 2)
    return ".".join(str(number) for number in (head, numbers[0] - 40 * head, *numbers[1:]))


def _escaped(value: str) -> str:
    # RFC 4514 section 2.4.
    text = re.sub(r'([\\",+;<>])', r"\\\1", value)
    if text.startswith((" ", "#")):
        text = "\\" + text
    if text.endswith(" ") and not text.endswith("\\ "):
        text = text[:-1] + "\\ "
    return text


def _refuse(cause: str) -> FormatError:
    return FormatError(f"cannot read the certificate: {cause}", code="key-invalid")
