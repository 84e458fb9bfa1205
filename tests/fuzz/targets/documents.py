# SPDX-License-Identifier: Apache-2.0
"""JSON documents: envelope, manifest, trust root, policy, seccomp profile, settings, and the codec below them."""

from __future__ import annotations

import functools
import json
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from scaleoutd.cli.modelsignature import parse_bundle, verify_bundle
from scaleoutd.core import seccomp, sshsig, strictjson
from scaleoutd.core.envelope import STATEMENT_TYPE, parse_envelope, serialise_envelope, sign_payload, verify_envelope
from scaleoutd.core.keys import PublicKey, public_key_of
from scaleoutd.core.manifest import Expected, FileEntry, Manifest, manifest_payload, parse_manifest
from scaleoutd.core.policy import DataSetRule, development_policy, parse_policy
from scaleoutd.core.settings import check_schema, check_settings
from scaleoutd.core.trust import Role, TrustedKey, TrustRoot, parse_trust_root
from scaleoutd.errors import VerificationError
from tests.fuzz.target import Target, same
from tests.unit.cli import signed_model
from tests.unit.core.authenticator import SshSigner
from tests.unit.core.trust_samples import ALICE, BOB

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
OTHER_KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(1, 33)))
PROFILE = Path(__file__).resolve().parents[3] / "policy" / "seccomp" / "step.json"
SCHEMA = {
    "properties": {
        "lr": {"type": "number", "minimum": "0.0001", "maximum": 1},
        "epochs": {"type": "integer", "minimum": 1},
        "tags": {"type": "array", "maxItems": 3, "items": {"enum": ["a", 1, None]}},
        "name": {"type": "string", "maxLength": 5},
        "more": {"type": "object", "additionalProperties": True},
    },
    "required": ["lr"],
}


def _json(data: bytes) -> None:
    value = strictjson.parse(data, max_bytes=1 << 20)
    same(value, json.loads(data), "the standard library's reading")
    written = strictjson.canonical(value)
    same(strictjson.parse_canonical(written, max_bytes=1 << 21), value, "the canonical form's value")
    same(strictjson.canonical(strictjson.parse(written, max_bytes=1 << 21)), written, "the canonical form again")


def _json_floats(data: bytes) -> None:
    value = strictjson.parse(data, max_bytes=1 << 20, allow_floats=True)
    json.dumps(value, allow_nan=False).encode("utf-8")


def _envelope(data: bytes) -> None:
    envelope = parse_envelope(data)
    written = serialise_envelope(envelope)
    same(parse_envelope(written), envelope, "the envelope written and read")
    try:
        verified = verify_envelope(envelope, [public_key_of(KEY), public_key_of(OTHER_KEY)], 1)
    except VerificationError:
        return
    assert verified.payload in (_envelope_of(KEY).payload, b"{}"), verified.payload


def _manifest(data: bytes) -> None:
    manifest = parse_manifest(data)
    same(parse_manifest(manifest_payload(manifest)), manifest, "the manifest written and read")


def _trust_root(data: bytes) -> None:
    root = parse_trust_root(data)
    same(parse_trust_root(root.payload()), root, "the root written and read")
    root.public_keys()


def _public_key(data: bytes) -> None:
    key = PublicKey.from_pem(data.decode("utf-8", "surrogateescape"))
    same(PublicKey.from_pem(key.pem), key, "the key written and read")
    key.verify(data[:64], b"")


def _ssh_signature(data: bytes) -> None:
    """The blob; its verification by either key must be an answer too."""
    signature = sshsig.parse_signature(data)
    signature.signed_bytes(b"x")
    for key in (public_key_of(KEY), PublicKey.from_ssh(signature.key)):
        key.verify(data, b"x")


def _ssh_key(data: bytes) -> None:
    PublicKey.from_ssh(sshsig.parse_key_line(data.decode("utf-8", "surrogateescape")))


def _ssh_armour(data: bytes) -> None:
    sshsig.parse_signature(sshsig.unarmour(data.decode("utf-8", "surrogateescape")))


def _ssh_signers() -> list[SshSigner]:
    return [SshSigner(key, application) for key in (ALICE, BOB) for application in ("ssh:", None)]


def _policy(data: bytes) -> None:
    policy = parse_policy(data)
    same(parse_policy(policy.canonical()), policy, "the policy written and read")
    check_settings('{"a":1}', policy.settings_schema) if policy.settings_schema == {} else None


def _profile(data: bytes) -> None:
    profile = seccomp.parse_profile(data)
    profile.notified()


def _settings(data: bytes) -> None:
    text = data.decode("utf-8", "surrogateescape")
    passed = check_settings(text, SCHEMA)
    assert passed in ("", text)


def _schema(data: bytes) -> None:
    """[schema, settings]: whatever schema passes must be able to judge."""
    value = strictjson.parse(data, max_bytes=64 * 1024, allow_floats=True)
    schema, settings = value if isinstance(value, list) and len(value) == 2 else (value, {"a": [1, "b", {"c": 0.5}]})
    check_schema(schema)
    check_settings(json.dumps(settings), schema)


@functools.cache
def _envelope_of(key: Ed25519PrivateKey):  # type: ignore[no-untyped-def]
    return sign_payload(manifest_payload(_sample_manifest()), STATEMENT_TYPE, [key])


def _sample_manifest(**changes: object) -> Manifest:
    files = (
        FileEntry("lib/é.py", 3, "ab" * 32, True),
        FileEntry("train.py", 67108865, "cd" * 32, False, ("01" * 32, "02" * 32)),
    )
    values: dict[str, object] = {
        "project": "demo", "version": 2, "not_before_ms": 1, "expires_ms": 2**41, "files": files,
        "steps": {"train": ("python", "train.py", "--x", "é"), "startup": ("true",)}, "ignored": ("*.pyc", "!keep.pyc"),
        "environments": {"default": Expected("ef" * 32)}, "data_sets": {"d": Expected()}, "startup_file": "train.py",
        "policy_sha256": "09" * 32,
    }  # fmt: skip
    return Manifest(**{**values, **changes})  # type: ignore[arg-type]


def _manifest_seeds() -> list[bytes]:
    short = Manifest("p", 1, 0, 1, (FileEntry("a", 0, "00" * 32),), {})
    return [manifest_payload(_sample_manifest()), manifest_payload(short)]


def _root_seeds() -> list[bytes]:
    one, two = public_key_of(KEY), public_key_of(OTHER_KEY)
    keys = {one.keyid: TrustedKey(one.pem, name="Ann"), two.keyid: TrustedKey(two.pem, ("demo*",))}
    roles = {"root": Role((one.keyid,), 1), "ml": Role((one.keyid,), 1), "security": Role((two.keyid,), 1)}
    root = TrustRoot("scaleoutd-trust-root-v1", 3, 2**41, keys, roles, ("aa" * 32,), ("bb" * 32,))
    return [root.payload()]


def _envelope_seeds() -> list[bytes]:
    envelope = _envelope_of(KEY)
    twice = sign_payload(b"{}", STATEMENT_TYPE, [KEY, OTHER_KEY])
    return [serialise_envelope(envelope), serialise_envelope(twice)]


def _policy_seeds() -> list[bytes]:
    policy = development_policy("/srv/project", "/usr/bin/python3", {"d": "/srv/data"}, "demo")
    value = json.loads(policy.canonical())
    value["data_sets"]["d"] = {"path": "/d", "mode": "full", "digest": "ab" * 32}
    value["settings_schema"] = SCHEMA
    assert DataSetRule("/d", "full", "ab" * 32)
    return [policy.canonical(), strictjson.canonical(value)]


def _profile_seeds() -> list[bytes]:
    rules = [
        {"names": ["read", "write"], "action": "SCMP_ACT_ALLOW"},
        {"names": ["ptrace"], "action": "SCMP_ACT_NOTIFY", "comment": "counted"},
        {"names": ["socket"], "action": "SCMP_ACT_ERRNO", "errnoRet": 97, "args": [
            {"index": 0, "value": 1, "op": "SCMP_CMP_MASKED_EQ", "valueTwo": 1}]},
        {"names": ["socket"], "action": "SCMP_ACT_ALLOW"},
    ]  # fmt: skip
    small = {"defaultAction": "SCMP_ACT_ERRNO", "architectures": ["SCMP_ARCH_X86_64"], "syscalls": rules}
    return [json.dumps(small).encode()]


def _model_signature(data: bytes) -> None:
    """A bundle, or the payload of one that is then signed: what it lists is all of each file and no file twice."""
    is_bundle = b'"mediaType"' in data
    bundle = parse_bundle(data if is_bundle else signed_model.sign_payload(data))
    model = verify_bundle(bundle, public_key_of(signed_model.KEY))
    for shards in model.files.values():
        assert shards[-1].end is None or [shard.start for shard in shards] == [0, *(shard.end for shard in shards[:-1])]


def _model_signature_seeds() -> list[bytes]:
    payload = signed_model.statement_of({"a": b"1", "b/c": b"2"})
    shards = signed_model.sharded(payload, ["a:0:4", "a:4:7"])
    return [signed_model.bundle(payload), json.dumps(payload).encode(), json.dumps(shards).encode()]


_MODEL_SIGNATURE = frozenset({"envelope-invalid", "signature-invalid", "file-name"})
_JSON_SEEDS = [b'{"a":[1,-2,null,true,{"b":"\\u00e9\\n"}],"\xc3\xa9":9007199254740991}', b"[]", b'"x"', b"[" * 30 + b"]" * 30]
_SETTINGS = [b'{"lr":0.1,"epochs":3,"tags":["a",1,null],"name":"x","more":{"a":[1]}}', b"", b"{}", b"null"]
_RECORD = {"record-invalid", "json-invalid"}
_SCHEMA_SEEDS = [json.dumps([SCHEMA, {"lr": 0.5, "name": "abc"}]).encode(), b'{"type":"object","enum":[{}]}']

TARGETS = (
    Target("json", _json, lambda: _JSON_SEEDS, frozenset({"json-invalid"}), json=True),
    Target("json-floats", _json_floats, lambda: [*_JSON_SEEDS, b"[1.5,-1e-7,0.0]"], frozenset({"json-invalid"}), json=True),
    Target("envelope", _envelope, _envelope_seeds, frozenset({"envelope-invalid"}), (b"QR==", b"=", b'"sig"'), json=True),
    Target(
        "model-signature", _model_signature, _model_signature_seeds, _MODEL_SIGNATURE, (b"QR==", b'"hint"', b"1.0"), json=True
    ),
    Target(
        "manifest", _manifest, _manifest_seeds, frozenset({*_RECORD, "manifest-invalid", "file-name"}), (b"../", b"//"), json=True
    ),
    Target("trust-root", _trust_root, _root_seeds, frozenset({*_RECORD, "key-invalid"}), (b'"*"',), json=True),
    Target(
        "public-key",
        _public_key,
        lambda: [public_key_of(KEY).pem.encode()],
        frozenset({"key-invalid"}),
        (b"-----BEGIN PUBLIC KEY-----", b"-----END PUBLIC KEY-----", b"RSA ", b"\n"),
    ),
    Target(
        "ssh-signature",
        _ssh_signature,
        lambda: [sshsig.unarmour(signer.armoured(b"x")) for signer in _ssh_signers()],
        frozenset({"key-invalid"}),
        (b"SSHSIG", b"\x00\x00\x00\x09scaleoutd", b"\x00\x00\x02\x00", b"\xff\xff\xff\xff", b"\x00\x00\x00\x00"),
    ),
    Target(
        "ssh-key",
        _ssh_key,
        lambda: [signer.public_line.encode() for signer in _ssh_signers()],
        frozenset({"key-invalid"}),
        (b"ssh-ed25519 ", b"AAAA", b" "),
    ),
    Target(
        "ssh-armour",
        _ssh_armour,
        lambda: [signer.armoured(b"x").encode() for signer in _ssh_signers()],
        frozenset({"key-invalid"}),
        (b"-----BEGIN SSH SIGNATURE-----", b"-----END SSH SIGNATURE-----", b"\n"),
    ),
    Target("policy", _policy, _policy_seeds, frozenset(_RECORD), json=True),
    Target("seccomp", _profile, _profile_seeds, frozenset(_RECORD), json=True),
    Target("settings", _settings, lambda: _SETTINGS, frozenset({"settings-denied"}), json=True),
    Target(
        "settings-schema",
        _schema,
        lambda: _SCHEMA_SEEDS,
        frozenset({*_RECORD, "settings-denied"}),
        (b'"1e9"', b'"sNaN"'),
        json=True,
    ),
)
