# SPDX-License-Identifier: Apache-2.0
"""JSON texts that must be read and that must be refused, by name.  `make.py` writes them as files for other programs."""

from __future__ import annotations

ACCEPTED: dict[str, bytes] = {
    "null": b"null",
    "nested": b'{"a":[1,{"b":null}],"c":true}',
    "largest-integer": b"9007199254740991",
    "smallest-integer": b"-9007199254740991",
    "escapes": b'"\\b\\f\\n\\r\\t\\u001f\\\\\\""',
    "surrogate-pair": b'"\\ud83d\\ude00"',
    "utf-8": '"é€😀"'.encode(),
    "white-space": b' { "a" : 1 } ',
    "empty-key": b'{"":0}',
}

REFUSED: dict[str, bytes] = {
    "empty": b"",
    "duplicate-key": b'{"a":1,"a":1}',
    "duplicate-key-escaped": b'{"a":1,"\\u0061":2}',
    "duplicate-key-deep": b'{"x":[{"k":1,"l":2,"k":3}]}',
    "nan": b"NaN",
    "infinity": b"[-Infinity]",
    "float": b"1.0",
    "exponent": b"1e2",
    "integer-too-large": b"9007199254740992",
    "integer-too-small": b"-9007199254740992",
    "integer-huge": b"1" * 5000,
    "leading-zero": b"01",
    "plus-sign": b"+1",
    "lone-high-surrogate": b'"\\ud800"',
    "lone-low-surrogate-in-key": b'{"\\udc00":1}',
    "surrogate-bytes": b'"\xed\xa0\x80"',
    "byte-order-mark": b"\xef\xbb\xbf1",
    "utf-16": '{"a":1}'.encode("utf-16"),
    "bad-utf-8": b'"\xff"',
    "overlong-utf-8": b'"\xc0\xaf"',
    "control-character": b'"\n"',
    "trailing-comma": b"[1,]",
    "trailing-text": b"{} {}",
    "comment": b"{/* */}",
    "single-quotes": b"{'a':1}",
    "too-deep": b"[" * 33 + b"]" * 33,
}
