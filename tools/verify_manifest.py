#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: B905, PTH112, PTH116, PTH118, PTH208, RUF005, RUF007, UP031
# mypy: ignore-errors
"""A second verifier of signed projects, written from docs/manifest-format.md and from nothing of scaleoutd.

    python3 verify_manifest.py FOLDER --trust-root FILE-OR-FOLDER [--project NAME] [--at-ms UNIX-MS]

One file, Python 3.9 or later, the standard library only: Ed25519 after RFC 8032 section 5.1.7 and ECDSA P-256 after FIPS 186-5
section 6.4.2 are written out below, slowly and without secrets to guard.  Exit status 0 when the folder is exactly what was
signed, 1 with the code and the cause when it is not, 2 when something could not be read.

It shares no code with the node on purpose: two programs that read one page and agree on tests/vectors/trust are better evidence
than one program that agrees with itself.
"""

from __future__ import annotations

import argparse
import base64
import binascii
import hashlib
import json
import os
import re
import stat
import sys
import time
import unicodedata

MIB = 1024 * 1024
MAX_ENVELOPE, MAX_ROOT = 64 * MIB, MIB
CHUNK = 64 * MIB
MAX_INT = 2**53 - 1
SET_BACK_MS = 5 * 60 * 1000
STATEMENT = "application/vnd.in-toto+json"
ROOT_TYPE = "application/vnd.scaleoutd.trust-root+json"
MANIFEST_NAME = "scaleout.manifest.json"
MAX_FOUND, MAX_DEPTH, MAX_DOUBLE_STARS, MAX_ROOTS = 200000, 64, 2, 1024
STEPS = ("train", "validate", "predict", "startup", "build")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@+-]{0,127}")
HEX = re.compile(r"[0-9a-f]{64}")
MISLEADING = set(map(chr, [0x200E, 0x200F, *range(0x2028, 0x202F), *range(0x2066, 0x206A), 0xFEFF]))


class Refused(Exception):
    """`code` as in the table of docs/manifest-format.md."""

    def __init__(self, code, cause):
        super().__init__(cause)
        self.code = code


# --- JSON: RFC 8259 without what is ambiguous, and the canonical bytes of RFC 8785 -----------------------------------


def parse_json(data, max_bytes):
    def fail(cause):
        raise Refused("json-invalid", cause)

    def pairs(items):
        if len(dict(items)) != len(items):
            raise ValueError("a key appears twice")
        return dict(items)

    def integer(text):
        if len(text) > 17 or abs(int(text)) > MAX_INT:
            raise ValueError("an integer is out of range")
        return int(text)

    def no(text):
        raise ValueError(text + " is not allowed")

    if len(data) > max_bytes:
        fail("too long")
    if depth(data) > 32:
        fail("too deep")
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=pairs, parse_int=integer, parse_float=no, parse_constant=no)
        json.dumps(value, ensure_ascii=False).encode("utf-8")  # a lone surrogate has no bytes
    except (ValueError, RecursionError) as exc:
        fail(str(exc))
    return value


def depth(data):
    deepest = level = 0
    in_string = escaped = False
    for byte in data:
        if in_string:
            in_string = escaped or byte != 0x22
            escaped = not escaped and byte == 0x5C
        elif byte == 0x22:
            in_string = True
        elif byte in b"[{":
            level += 1
            deepest = max(deepest, level)
        elif byte in b"]}":
            level -= 1
    return deepest


def canonical(value):
    if isinstance(value, dict):
        keys = sorted(value, key=lambda key: key.encode("utf-16-be"))
        return b"{" + b",".join(canonical(key) + b":" + canonical(value[key]) for key in keys) + b"}"
    if isinstance(value, list):
        return b"[" + b",".join(map(canonical, value)) + b"]"
    return json.dumps(value, ensure_ascii=False).encode("utf-8")


def parse_canonical(data, max_bytes):
    value = parse_json(data, max_bytes)
    if canonical(value) != data:
        raise Refused("json-invalid", "not in canonical form (RFC 8785)")
    return value


# --- records: exactly these fields, of exactly these kinds ------------------------------------------------------------


def bad(where):
    raise Refused("record-invalid", where)


def record(value, where, required, optional=()):
    """`required`, `optional`: field → check.  Optional fields may be left out; null is no value."""
    if not isinstance(value, dict) or set(value) - set(required) - set(optional) or set(required) - set(value):
        bad(where + ": fields")
    checks = dict(required, **dict(optional))
    for name in value:
        checks[name](value[name], where + "." + name)


def integer(low, high=MAX_INT):
    def check(value, where):
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            bad(where)

    return check


def text(low, high, pattern=None):
    def check(value, where):
        if not isinstance(value, str) or not low <= len(value) <= high or (pattern and not re.fullmatch(pattern, value)):
            bad(where)

    return check


def flag(value, where):
    if not isinstance(value, bool):
        bad(where)


def equal(wanted):
    def check(value, where):
        if value != wanted or not isinstance(value, str):
            bad(where)

    return check


def items(low, high, one):
    def check(value, where):
        if not isinstance(value, list) or not low <= len(value) <= high:
            bad(where)
        for index, item in enumerate(value):
            one(item, "%s[%d]" % (where, index))

    return check


def mapping(low, high, one):
    def check(value, where):
        if not isinstance(value, dict) or not low <= len(value) <= high:
            bad(where)
        for key, item in value.items():
            one(item, where + "." + key)

    return check


def fields(required, optional=()):
    return lambda value, where: record(value, where, required, optional)


name_text, sha256_text = text(1, 128, NAME), text(64, 64, HEX)


# --- Ed25519 (RFC 8032) -----------------------------------------------------------------------------------------------

P = 2**255 - 19
L = 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, P - 2, P) % P
SQRT_M1 = pow(2, (P - 1) // 4, P)
SMALL_ORDER_Y = {
    0,
    1,
    P - 1,
    2707385501144840649318225287225658788936804267575313519463743609750303402022,
    55188659117513257062467267217118295137698188065244968500265048394206261417927,
}


def ed_add(a, b):
    x1, y1, z1, t1 = a
    x2, y2, z2, t2 = b
    e, f = (y1 - x1) * (y2 - x2) % P, (y1 + x1) * (y2 + x2) % P
    g, h = 2 * t1 * t2 * D % P, 2 * z1 * z2 % P
    e, f, g, h = f - e, h - g, h + g, f + e
    return e * f % P, g * h % P, f * g % P, e * h % P


def ed_times(scalar, point):
    result = (0, 1, 1, 0)
    while scalar:
        if scalar & 1:
            result = ed_add(result, point)
        point = ed_add(point, point)
        scalar >>= 1
    return result


def ed_recover_x(y, sign):
    square = (y * y - 1) * pow(D * y * y + 1, P - 2, P) % P
    x = pow(square, (P + 3) // 8, P)
    if (x * x - square) % P:
        x = x * SQRT_M1 % P
    if (x * x - square) % P:
        return None
    return P - x if (x & 1) != sign else x


def ed_encode(point):
    x, y, z, _ = point
    inverse = pow(z, P - 2, P)
    return (y * inverse % P | (x * inverse % P & 1) << 255).to_bytes(32, "little")


BASE_Y = 4 * pow(5, P - 2, P) % P
BASE_X = ed_recover_x(BASE_Y, 0)
BASE = (BASE_X, BASE_Y, 1, BASE_X * BASE_Y % P)


def ed25519_verify(raw_key, signature, message):
    """Without the cofactor: [S]B - [k]A is encoded and compared with R byte by byte."""
    if len(signature) != 64:
        return False
    number = int.from_bytes(raw_key, "little")
    y, sign = number % 2**255, number >> 255
    x = ed_recover_x(y, sign)
    scalar = int.from_bytes(signature[32:], "little")
    if x is None or scalar >= L:
        return False
    k = int.from_bytes(hashlib.sha512(signature[:32] + raw_key + message).digest(), "little") % L
    minus_key = (P - x, y, 1, (P - x) * y % P)
    return ed_encode(ed_add(ed_times(scalar, BASE), ed_times(k, minus_key))) == signature[:32]


# --- ECDSA over P-256 with SHA-256 (FIPS 186-5; SP 800-186 section 3.2.1.3) --------------------------------------------

Q = 2**256 - 2**224 + 2**192 + 2**96 - 1
N = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
B = 0x5AC635D8AA3A93E7B3EBBD55769886BC651D06B0CC53B0F63BCE3C3E27D2604B
G = (
    0x6B17D1F2E12C4247F8BCE6E563A440F277037D812DEB33A0F4A13945D898C296,
    0x4FE342E2FE1A7F9B8EE7EB4A7C0F9E162BCE33576B315ECECBB6406837BF51F5,
)


def ec_add(a, b):
    if a is None or b is None:
        return a or b
    if a[0] == b[0]:
        if (a[1] + b[1]) % Q == 0:
            return None
        slope = (3 * a[0] * a[0] - 3) * pow(2 * a[1], Q - 2, Q)
    else:
        slope = (b[1] - a[1]) * pow(b[0] - a[0], Q - 2, Q)
    x = (slope * slope - a[0] - b[0]) % Q
    return x, (slope * (a[0] - x) - a[1]) % Q


def ec_times(scalar, point):
    result = None
    while scalar:
        if scalar & 1:
            result = ec_add(result, point)
        point = ec_add(point, point)
        scalar >>= 1
    return result


def p256_verify(point, pair, message):
    r, s = pair
    if not (0 < r < N and 0 < s < N):
        return False
    digest, inverse = int.from_bytes(hashlib.sha256(message).digest(), "big"), pow(s, N - 2, N)
    found = ec_add(ec_times(digest * inverse % N, G), ec_times(r * inverse % N, point))
    return found is not None and found[0] % N == r


def der_pair(data):
    """r and s of an ECDSA-Sig-Value, in DER and nothing else; None otherwise."""
    if len(data) < 2 or data[0] != 0x30 or data[1] != len(data) - 2 or data[1] >= 0x80:
        return None
    numbers, at = [], 2
    while at < len(data):
        if at + 2 > len(data) or data[at] != 2:
            return None
        part = data[at + 2 : at + 2 + data[at + 1]]
        at += 2 + data[at + 1]
        if not part or at > len(data) or part[0] >= 0x80 or (len(part) > 1 and part[0] == 0 and part[1] < 0x80):
            return None
        numbers.append(int.from_bytes(part, "big"))
    return tuple(numbers) if len(numbers) == 2 else None


# --- keys and signatures ----------------------------------------------------------------------------------------------

ED_PREFIX = bytes.fromhex("302a300506032b6570032100")
EC_PREFIX = bytes.fromhex("3059301306072a8648ce3d020106082a8648ce3d03010703420004")


class Key:
    """`raw`: 32 bytes of Ed25519, or 65 of an uncompressed point."""

    def __init__(self, entry):
        pem = entry["pem"]
        lines = pem.strip().split("\n")
        try:
            der = base64.b64decode("".join(lines[1:-1]).encode("ascii"), validate=True)
        except ValueError:
            raise Refused("key-invalid", "no PEM") from None
        body = base64.b64encode(der).decode()
        usual = ["-----BEGIN PUBLIC KEY-----"] + [body[at : at + 64] for at in range(0, len(body), 64)]
        if lines != usual + ["-----END PUBLIC KEY-----"]:
            raise Refused("key-invalid", "not in its usual form")
        self.keyid = hashlib.sha256(der).hexdigest()
        self.application, self.verify_required = entry.get("application"), bool(entry.get("verify_required"))
        if der.startswith(ED_PREFIX) and len(der) == 44:
            self.raw = der[12:]
            y = int.from_bytes(self.raw, "little") % 2**255
            if y >= P or y in SMALL_ORDER_Y:
                raise Refused("key-invalid", "a point of small order, or not in canonical form")
        elif der.startswith(EC_PREFIX) and len(der) == 91:
            self.raw = der[26:]
            x, y = self.point
            if x >= Q or y >= Q or (y * y - x * x * x + 3 * x - B) % Q:
                raise Refused("key-invalid", "not on the curve")
        else:
            raise Refused("key-invalid", "neither Ed25519 nor P-256")

    @property
    def point(self):
        return int.from_bytes(self.raw[1:33], "big"), int.from_bytes(self.raw[33:], "big")

    def verify(self, signature, message):
        if signature.startswith(b"SSHSIG") and len(signature) > 128:
            return self.verify_ssh(signature, message)
        if self.application is not None or len(signature) > 128:
            return False
        return self.verify_plain(signature, message)

    def verify_plain(self, signature, message):
        if len(self.raw) == 32:
            return ed25519_verify(self.raw, signature, message)
        pair = der_pair(signature)
        return pair is not None and p256_verify(self.point, pair, message)

    def verify_ssh(self, blob, message):
        try:
            return len(blob) <= 1024 and self.read_ssh(Reader(blob[6:]), message)
        except ValueError:
            return False

    def read_ssh(self, reader, message):
        """PROTOCOL.sshsig, and PROTOCOL.u2f for a key with an application."""
        plain = ("ssh-ed25519", "sk-ssh-ed25519@openssh.com") if len(self.raw) == 32 else (
            "ecdsa-sha2-nistp256", "sk-ecdsa-sha2-nistp256@openssh.com")  # fmt: skip
        kind = plain[self.application is not None].encode()
        mine = string(kind) + (b"" if len(self.raw) == 32 else string(b"nistp256")) + string(self.raw)
        mine += b"" if self.application is None else string(self.application.encode())
        version, public, namespace, reserved, hash_name = reader.uint32(), reader.string(), *(reader.string() for _ in range(3))
        blob = Reader(reader.string())
        reader.end()
        if version != 1 or public != mine or namespace != b"scaleoutd" or reserved or hash_name not in (b"sha256", b"sha512"):
            return False
        if blob.string() != kind:
            return False
        inner = blob.string()
        signed = b"SSHSIG" + string(namespace) + string(b"") + string(hash_name)
        signed += string(hashlib.new(hash_name.decode(), message).digest())
        if self.application is not None:
            flags, counter = blob.take(1), blob.take(4)
            if not flags[0] & 1 or (self.verify_required and not flags[0] & 4):
                return False
            application = hashlib.sha256(self.application.encode()).digest()
            signed = application + flags + counter + hashlib.sha256(signed).digest()
        blob.end()
        if len(self.raw) == 32:
            return ed25519_verify(self.raw, inner, signed)
        pair = Reader(inner)
        numbers = pair.mpint(), pair.mpint()
        pair.end()
        return p256_verify(self.point, numbers, signed)


def string(data):
    return len(data).to_bytes(4, "big") + data


class Reader:
    """RFC 4251 section 5; ValueError where it ends too early or too late."""

    def __init__(self, data):
        self.data = data

    def take(self, count):
        if count > len(self.data):
            raise ValueError("too short")
        head, self.data = self.data[:count], self.data[count:]
        return head

    def uint32(self):
        return int.from_bytes(self.take(4), "big")

    def string(self):
        return self.take(self.uint32())

    def mpint(self):
        data = self.string()
        if not data or len(data) > 33 or data[0] >= 0x80 or (data[0] == 0 and (len(data) == 1 or data[1] < 0x80)):
            raise ValueError("a number")
        return int.from_bytes(data, "big")

    def end(self):
        if self.data:
            raise ValueError("too long")


# --- envelope ---------------------------------------------------------------------------------------------------------


def parse_envelope(data, payload_type):
    """(payload, signatures)."""
    try:
        value = parse_json(data, MAX_ENVELOPE)
        signature = fields({"sig": text(4, 2048)}, {"keyid": text(0, 128)})
        record(value, "envelope", {"payload": text(0, MAX_ENVELOPE), "payloadType": text(0, 128),
                                   "signatures": items(1, 32, signature)})  # fmt: skip
        if value["payloadType"] != payload_type:
            raise Refused("", "payload type")
        return unbase64(value["payload"]), [unbase64(item["sig"]) for item in value["signatures"]]
    except Refused as exc:
        raise Refused("envelope-invalid", str(exc)) from None


def unbase64(text_):
    try:
        data = base64.b64decode(text_.encode("ascii"), validate=True)
    except (binascii.Error, ValueError):
        raise Refused("envelope-invalid", "no base64") from None
    if base64.b64encode(data).decode("ascii") != text_:
        raise Refused("envelope-invalid", "base64 is not canonical")
    return data


def signers_of(payload, signatures, payload_type, keys):
    """Ids of the keys that signed; a key counts once, and what an envelope says of ids counts for nothing."""
    kind = payload_type.encode()
    signed = b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)
    return {key.keyid for key in keys if any(key.verify(signature, signed) for signature in signatures)}


# --- trust root -------------------------------------------------------------------------------------------------------

_PATTERN = r"[A-Za-z0-9*][A-Za-z0-9._:@+*-]*"
_KEY = fields(
    {"pem": text(1, 1024)},
    {
        "projects": items(0, 256, text(0, 128, _PATTERN)),
        "name": text(0, 128, r"[^\x00-\x1f\x7f]*"),
        "application": text(0, 128, r"[\x21-\x7e]+"),
        "verify_required": flag,
    },
)
_ROLE = fields({"keys": items(1, 256, sha256_text), "threshold": integer(1, 256)})


def parse_root(payload):
    root = parse_canonical(payload, MAX_ROOT)
    required = {
        "_type": equal("scaleoutd-trust-root-v1"),
        "version": integer(1),
        "expires_ms": integer(1),
        "keys": mapping(1, 256, _KEY),
        "roles": mapping(2, 64, _ROLE),
    }
    optional = {
        "revoked_keys": items(0, 10000, sha256_text),
        "revoked_manifests": items(0, 10000, sha256_text),
        "development": flag,
    }
    record(root, "trust root", required, optional)
    for name, value in (("revoked_keys", []), ("revoked_manifests", []), ("development", False)):
        root.setdefault(name, value)
    for keyid, entry in root["keys"].items():
        entry.setdefault("projects", ["*"])
        entry.setdefault("name", "")
        if Key(entry).keyid != keyid or (entry.get("verify_required") and "application" not in entry):
            bad("key " + keyid)
    holders = {}
    for name, role in root["roles"].items():
        name_text(name, "role")
        if len(set(role["keys"])) != len(role["keys"]) or role["threshold"] > len(role["keys"]):
            bad("role " + name)
        for keyid in role["keys"]:
            if keyid not in root["keys"] or (name != "root" and holders.setdefault(keyid, name) != name):
                bad("role " + name)
    if "root" not in root["roles"]:
        bad("no role root")
    return root


def root_digest(root):
    """Of the canonical document with what was left out written out."""
    return hashlib.sha256(canonical(root)).hexdigest()


def verify_chain(documents, at_ms, floor_version=0, pin=None):
    """`pin`: (version, digest) of the root accepted before."""
    try:
        roots = []
        if len(documents) > MAX_ROOTS:
            bad("too many roots")
        for document in documents:
            roots.append(_verify_root(document, roots[-1] if roots else None))
        if pin is not None and [root_digest(root) for root in roots if root["version"] == pin[0]] != [pin[1]]:
            bad("not the root that was accepted before")
        if not roots or roots[-1]["version"] < floor_version or roots[-1]["expires_ms"] <= at_ms:
            bad("older than one accepted before, or expired")
        return roots[-1]
    except Refused as exc:
        raise Refused("trust-root-invalid", str(exc)) from None


def _verify_root(document, before):
    payload, signatures = parse_envelope(document, ROOT_TYPE)
    if before is not None:
        _root_signed(payload, signatures, before)
    root = parse_root(payload)
    _root_signed(payload, signatures, root)
    if before is not None and (root["version"] != before["version"] + 1 or root["development"] != before["development"]):
        bad("version or kind does not follow")
    return root


def _root_signed(payload, signatures, root):
    role = root["roles"]["root"]
    usable = [Key(root["keys"][keyid]) for keyid in role["keys"] if keyid not in root["revoked_keys"]]
    if len(signers_of(payload, signatures, ROOT_TYPE, usable)) < role["threshold"]:
        bad("too few signatures of root keys")


# --- manifest ---------------------------------------------------------------------------------------------------------

_FILE = fields(
    {"path": text(1, 1024), "size_bytes": integer(0), "sha256": sha256_text},
    {"executable": flag, "chunks": items(2, 65536, sha256_text)},
)
_EXPECTED = fields({}, {"sha256": sha256_text})
_COMMAND = items(1, 256, text(0, 4096, r"[^\x00]*"))
_MANIFEST = fields(
    {
        "project": name_text,
        "version": integer(1),
        "not_before_ms": integer(0),
        "expires_ms": integer(1),
        "files": items(1, 100000, _FILE),
        "steps": mapping(0, len(STEPS), _COMMAND),
    },
    {
        "ignored": items(0, 512, text(1, 256)),
        "environments": mapping(0, 64, _EXPECTED),
        "data_sets": mapping(0, 64, _EXPECTED),
        "startup_file": text(1, 1024),
        "policy_sha256": sha256_text,
        "development": flag,
    },
)


def parse_manifest(payload):
    value = parse_canonical(payload, MAX_ENVELOPE)
    subject = fields({"name": name_text, "digest": fields({"sha256": sha256_text})})
    required = {
        "_type": equal("https://in-toto.io/Statement/v1"),
        "subject": items(1, 1, subject),
        "predicateType": equal("urn:scaleoutd:manifest:v1"),
        "predicate": _MANIFEST,
    }
    record(value, "statement", required)
    manifest = value["predicate"]
    if manifest["not_before_ms"] >= manifest["expires_ms"] or set(manifest["steps"]) - set(STEPS):
        raise Refused("manifest-invalid", "dates or steps")
    for name in [*manifest.get("environments", ()), *manifest.get("data_sets", ())]:
        name_text(name, "id")
    check_paths([entry["path"] for entry in manifest["files"]])
    for entry in manifest["files"]:
        entry.setdefault("executable", False)
        wanted = -(-entry["size_bytes"] // CHUNK) if entry["size_bytes"] > CHUNK else 0
        if len(entry.get("chunks", ())) != wanted:
            raise Refused("manifest-invalid", "chunks of " + entry["path"])
    startup = manifest.get("startup_file")
    if startup is not None and startup not in {entry["path"] for entry in manifest["files"]}:
        raise Refused("manifest-invalid", "startup file")
    named = value["subject"][0]
    digest = hashlib.sha256(canonical(manifest["files"])).hexdigest()
    if named["name"] != manifest["project"] or named["digest"]["sha256"] != digest:
        raise Refused("manifest-invalid", "subject")
    return manifest


def check_paths(paths):
    for before, path in zip([""] + paths, paths):
        check_path(path)
        if path <= before:
            raise Refused("file-name", "doubled or not in order: " + repr(path))
    # Two names that share a folder where case does not count are neighbours once they are sorted so.
    ordered = sorted((folded(path) + "/", path) for path in paths)
    for (_, before), (_, path) in zip(ordered, ordered[1:]):
        for left, right in zip(before.split("/"), path.split("/")):
            if left != right:
                if folded(left) == folded(right):
                    raise Refused("file-name", "two spellings: " + repr(path))
                break
        else:
            raise Refused("file-name", "a file is a folder too: " + repr(path))


def folded(name):
    return unicodedata.normalize("NFC", name.casefold())


def check_path(path):
    if path == MANIFEST_NAME or unicodedata.normalize("NFC", path) != path:
        raise Refused("file-name", "the manifest itself, or not NFC")
    if any(char in MISLEADING or unicodedata.category(char) in ("Cc", "Cs") for char in path):
        raise Refused("file-name", "characters that mislead")
    for part in path.split("/"):
        if part in ("", ".", "..") or len(part.encode("utf-8")) > 255:
            raise Refused("file-name", "a component")


def authorize(root, project, signed):
    for name in sorted(root["roles"]):
        role = root["roles"][name]
        if name == "root":
            continue
        mine = {keyid for keyid in role["keys"] if any(matches(project, one) for one in root["keys"][keyid]["projects"])} & signed
        revoked = mine & set(root["revoked_keys"])
        if len(mine - revoked) < role["threshold"]:
            raise Refused("key-revoked" if revoked else "signature-threshold", "role " + name)


def matches(project, pattern):
    return re.fullmatch(".*".join(map(re.escape, pattern.split("*"))), project) is not None


def verify_manifest(envelope, root, at_ms, floors=None, project=None):
    """The manifest of an envelope under `root`; `floors`: time_ms and manifest_versions that were accepted before."""
    floors = floors or {}
    if floors.get("time_ms", 0) - at_ms > SET_BACK_MS:
        raise Refused("clock-set-back", "the clock lies before a time on record")
    payload, signatures = parse_envelope(envelope, STATEMENT)
    signed = signers_of(payload, signatures, STATEMENT, [Key(entry) for entry in root["keys"].values()])
    if not signed:
        raise Refused("signature-threshold", "no key that is trusted")
    manifest = parse_manifest(payload)
    if manifest.get("development", False) != root["development"]:
        raise Refused("signature-threshold", "development and production do not mix")
    authorize(root, manifest["project"], signed)
    if project is not None and manifest["project"] != project:
        raise Refused("project-mismatch", manifest["project"])
    if hashlib.sha256(payload).hexdigest() in root["revoked_manifests"]:
        raise Refused("manifest-revoked", "its digest is revoked")
    if at_ms < manifest["not_before_ms"]:
        raise Refused("manifest-not-yet-valid", "not before")
    if at_ms >= manifest["expires_ms"]:
        raise Refused("manifest-expired", "expires")
    if manifest["version"] < floors.get("manifest_versions", {}).get(manifest["project"], 0):
        raise Refused("manifest-replayed", "a later version was accepted")
    return manifest


# --- the folder -------------------------------------------------------------------------------------------------------


def check_folder(folder, manifest):
    """Every file, and no other; nothing is followed and nothing special is opened."""
    wanted = {entry["path"]: entry for entry in manifest["files"]}
    rules = [rule for rule in map(ignore_rule, manifest.get("ignored", ())) if rule]
    found, inside = [], {}
    for path, state in walk(folder, "", rules, os.stat(folder).st_dev):
        if len(found) >= MAX_FOUND:
            raise Refused("file-type", "more than %d files" % MAX_FOUND)
        found.append((path, state))
        inside[node(state)] = inside.get(node(state), 0) + 1
    for path, state in found:
        if path not in wanted:
            try:
                check_path(path)
            except (Refused, UnicodeEncodeError):
                raise Refused("file-name", repr(path)) from None
            spellings = {name.casefold() for name in wanted}
            raise Refused("file-name" if path.casefold() in spellings else "file-extra", repr(path))
        if state.st_mode & 0o7000 or bool(state.st_mode & 0o111) != wanted[path]["executable"]:
            raise Refused("file-mode", path)
        if state.st_nlink > inside[node(state)]:
            raise Refused("file-type", path + ": a hard link to something outside")
        check_bytes(os.path.join(folder, path), wanted.pop(path))
    if wanted:
        raise Refused("file-missing", sorted(wanted)[0])


def node(state):
    return state.st_dev, state.st_ino


def walk(folder, prefix, rules, device):
    if prefix.count("/") > MAX_DEPTH:
        raise Refused("file-type", "deeper than %d folders" % MAX_DEPTH)
    for entry in sorted(os.scandir(os.path.join(folder, prefix)), key=lambda item: item.name):
        path = prefix + entry.name
        state = entry.stat(follow_symlinks=False)
        if is_ignored(path, stat.S_ISDIR(state.st_mode), rules) or path == MANIFEST_NAME:
            continue
        if path.startswith("." + MANIFEST_NAME + "."):  # the next manifest of a signer at work
            continue
        if stat.S_ISDIR(state.st_mode) and state.st_dev == device:
            yield from walk(folder, path + "/", rules, device)
        elif stat.S_ISREG(state.st_mode):
            yield path, state
        else:
            raise Refused("file-type", repr(path))


def check_bytes(path, entry):
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with os.fdopen(fd, "rb") as file:
        size, wanted = 0, entry.get("chunks") or [entry["sha256"]]
        for expected in wanted:
            digest, left = hashlib.sha256(), CHUNK if "chunks" in entry else entry["size_bytes"] + 1
            while left:
                block = file.read(min(left, MIB))
                if not block:
                    break
                digest.update(block)
                size, left = size + len(block), left - len(block)
            if digest.hexdigest() != expected:
                raise Refused("file-changed", entry["path"])
        if size != entry["size_bytes"] or file.read(1):
            raise Refused("file-changed", entry["path"])


def ignore_rule(pattern):
    """(takes back, folders only, whole path, components); None for a pattern that says nothing."""
    back = pattern.startswith("!")
    body = pattern[1:] if back else pattern
    only_folders = body.endswith("/")
    body = body.rstrip("/") if only_folders else body
    whole, body = "/" in body, body.lstrip("/")
    components = body.split("/")
    if any(ord(char) < 32 for char in pattern) or components.count("**") > MAX_DOUBLE_STARS:
        raise Refused("manifest-invalid", "ignored: " + repr(pattern))
    try:
        components = [part if part == "**" else re.compile(expression_of(part), re.DOTALL) for part in components]
    except re.error:
        raise Refused("manifest-invalid", "ignored: " + repr(pattern)) from None
    return (back, only_folders, whole, components) if body else None


def is_ignored(path, is_folder, rules):
    """The last rule that fits decides."""
    decision = False
    for back, only_folders, whole, components in rules:
        if only_folders and not is_folder:
            continue
        if components_match(components, path.split("/") if whole else [path.rpartition("/")[2]]):
            decision = not back
    return decision


def components_match(pattern, names):
    if not pattern or not names:
        return not pattern and not names
    if pattern[0] == "**":
        if len(pattern) == 1:
            return True
        return any(components_match(pattern[1:], names[at:]) for at in range(len(names)))
    return pattern[0].fullmatch(names[0]) is not None and components_match(pattern[1:], names[1:])


def expression_of(pattern):
    """`*`, `?`, `[...]` and a backslash, within one component."""
    expression, at = "", 0
    while at < len(pattern):
        char = pattern[at]
        end = pattern.find("]", at + 2) if char == "[" else -1
        if char == "*":
            expression += "" if expression.endswith(".*") else ".*"
        elif char == "?":
            expression += "."
        elif end > 0:
            inner = pattern[at + 1 : end]
            negated = inner[0] in "!^"
            members = re.sub(r"([\\\[^&])", r"\\\1", inner[1:] if negated else inner)
            expression += "[%s%s]" % ("^" if negated else "", members)
            at = end
        elif char == "\\" and at + 1 < len(pattern):
            at += 1
            expression += re.escape(pattern[at])
        else:
            expression += re.escape(char)
        at += 1
    return expression


def read_envelope(folder):
    """Of a regular file of this folder: no link is followed, and nothing that blocks is opened."""
    path = os.path.join(folder, MANIFEST_NAME)
    try:
        state = os.lstat(path)
    except FileNotFoundError:
        raise Refused("manifest-missing", "no %s in %s" % (MANIFEST_NAME, folder)) from None
    if not stat.S_ISREG(state.st_mode):
        raise Refused("file-type", MANIFEST_NAME + " is no regular file")
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
        return file.read(MAX_ENVELOPE + 1)


def read_chain(path):
    if not os.path.isdir(path):
        names = [path]
    else:
        numbers = sorted(int(name[:-5]) for name in os.listdir(path) if re.fullmatch(r"[0-9]+\.json", name))
        if not numbers or numbers != list(range(numbers[0], numbers[-1] + 1)):
            raise Refused("trust-root-invalid", "expected 1.json, 2.json … without a gap")
        names = [os.path.join(path, "%d.json" % number) for number in numbers]
    documents = []
    for name in names:
        with open(name, "rb") as file:
            documents.append(file.read(2 * MAX_ROOT + 1))
    return documents


def main():
    parser = argparse.ArgumentParser(description="Proves that FOLDER is exactly what was signed.")
    parser.add_argument("folder")
    parser.add_argument("--trust-root", required=True)
    parser.add_argument("--project")
    parser.add_argument("--at-ms", type=int, default=int(time.time() * 1000))
    given = parser.parse_args()
    try:
        root = verify_chain(read_chain(given.trust_root), given.at_ms)
        manifest = verify_manifest(read_envelope(given.folder), root, given.at_ms, project=given.project)
        check_folder(given.folder, manifest)
    except Refused as exc:
        print("refused [%s]: %s" % (exc.code, exc))
        return 1
    except OSError as exc:
        print("cannot verify: %s" % exc, file=sys.stderr)
        return 2
    print("accepted: %s version %d, %d files" % (manifest["project"], manifest["version"], len(manifest["files"])))
    return 0


if __name__ == "__main__":
    sys.exit(main())
