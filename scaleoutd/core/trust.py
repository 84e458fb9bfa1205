# SPDX-License-Identifier: Apache-2.0
"""The trust root: which keys may sign which projects, and how many of them it takes.

Rules (DESIGN.md section 3; the chain is TUF's, specification section 5.3):
  1. A root is canonical JSON in a DSSE envelope of its own payload type, signed by the keys of its role `root`.
  2. Root N + 1 is signed by enough `root` keys of N and enough of its own.  Only the last root's expiry counts.
  3. Every role but `root` is a rule, and all rules must hold: "one of ml and one of security" is two roles.  A key has
     at most one such role: otherwise one person could hold both.
  4. A key counts for a project when one of its patterns matches the project's name (`*` matches any run of characters).
  5. Revoked keys count for nothing; revoked manifests never run.  Revoked keys stay listed, so that the refusal can say why.
  6. A root with `development` set was made by a program for its own user; a service never accepts one.
"""

from __future__ import annotations

import fnmatch
import functools
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

from scaleoutd.core import strictjson
from scaleoutd.core.clock import FloorsLike, Now, utc_text
from scaleoutd.core.envelope import TRUST_ROOT_TYPE, Envelope, parse_envelope, sign_payload, verify_envelope
from scaleoutd.core.keys import MAX_PEM_CHARS, PrivateKey, PublicKey
from scaleoutd.core.records import Count, Name, Positive, Range, Sha256Hex, Text, decode, encode
from scaleoutd.errors import FormatError, VerificationError

ROOT_ROLE = "root"
MAX_ROOT_BYTES = 1024 * 1024
MAX_ROOTS = 1024

ProjectPattern = Annotated[str, Text(128, r"[A-Za-z0-9*][A-Za-z0-9._:@+*-]*")]


@dataclass(frozen=True)
class TrustedKey:
    """A public key in PEM, whose it is, and which projects it may sign.

    `application`: the key lives in a FIDO authenticator, made with `ssh-keygen -t …-sk`; "ssh:" unless it was told otherwise.
    `verify_required`: such a signature counts only when the authenticator verified its owner (PIN, finger), not just a touch.
    """

    pem: Annotated[str, Text(MAX_PEM_CHARS, "", 1)]
    projects: Annotated[tuple[ProjectPattern, ...], Count(0, 256)] = ("*",)
    name: Annotated[str, Text(128, r"[^\x00-\x1f\x7f]*")] = ""
    application: Annotated[str, Text(128, r"[\x21-\x7e]+")] | None = None
    verify_required: bool | None = None

    def public_key(self) -> PublicKey:
        key = PublicKey.from_pem(self.pem)
        return replace(key, application=self.application, verify_required=bool(self.verify_required))


@dataclass(frozen=True)
class Role:
    """`threshold` of these keys, by id."""

    keys: Annotated[tuple[Sha256Hex, ...], Count(1, 256)]
    threshold: Annotated[int, Range(1, 256)]


@dataclass(frozen=True)
class TrustRoot:
    """The document.  `keys` by key id, `roles` by name; `expires_ms` is Unix milliseconds."""

    type: Literal["scaleoutd-trust-root-v1"] = field(metadata={"json": "_type"})
    version: Positive
    expires_ms: Positive
    keys: Annotated[Mapping[str, TrustedKey], Count(1, 256)]
    roles: Annotated[Mapping[str, Role], Count(2, 64)]
    revoked_keys: Annotated[tuple[Sha256Hex, ...], Count(0, 10_000)] = ()
    revoked_manifests: Annotated[tuple[Sha256Hex, ...], Count(0, 10_000)] = ()
    development: bool = False

    def payload(self) -> bytes:
        """The canonical bytes that are signed."""
        return strictjson.canonical(encode(self))

    def digest(self) -> str:
        return hashlib.sha256(self.payload()).hexdigest()

    def public_keys(self, role: str | None = None) -> tuple[PublicKey, ...]:
        """The keys of a role, or all; revoked ones too."""
        wanted = self.keys if role is None else self.roles[role].keys
        return tuple(self.keys[keyid].public_key() for keyid in wanted)

    def key_name(self, keyid: str) -> str:
        """What people call the key: its name, else the head of its id."""
        key = self.keys.get(keyid)
        return key.name if key is not None and key.name else keyid[:12]

    def authorize(self, project: str, signers: Iterable[PublicKey]) -> Mapping[str, tuple[str, ...]]:
        """Role → ids of the keys that fulfil it.  `signers` are keys whose signatures were verified.

        VerificationError `key-revoked` when a revoked key's signature is what is missing, else `signature-threshold`.
        """
        signed = {key.keyid for key in signers}
        revoked = signed & set(self.revoked_keys)
        fulfilled: dict[str, tuple[str, ...]] = {}
        for name, role in sorted(self.roles.items()):
            if name == ROOT_ROLE:
                continue
            mine = [keyid for keyid in role.keys if self._may_sign(keyid, project)]
            counted = tuple(sorted(set(mine) & signed - revoked))
            if len(counted) < role.threshold:
                self._refuse_role(name, role, project, counted, sorted(set(mine) & revoked))
            fulfilled[name] = counted
        return fulfilled

    def _may_sign(self, keyid: str, project: str) -> bool:
        return any(fnmatch.fnmatchcase(project, pattern) for pattern in self.keys[keyid].projects)

    def _refuse_role(self, name: str, role: Role, project: str, counted: Sequence[str], revoked: Sequence[str]) -> None:
        found = ", ".join(self.key_name(keyid) for keyid in counted) or "none"
        wanted = f"expected {role.threshold} signature(s) of role {name}, found {len(counted)} ({found})"
        if revoked:
            raise VerificationError(
                f"cannot accept project {project}: {wanted}; the key {self.key_name(revoked[0])} that also signed is revoked",
                code="key-revoked",
                hint="Sign again with a key that is not revoked: `scaleoutctl sign`.",
            )
        raise VerificationError(
            f"cannot accept project {project}: {wanted}",
            code="signature-threshold",
            hint=f"Let a holder of a key of role {name} run `scaleoutctl sign --add`.",
        )


@dataclass(frozen=True)
class RootPin:
    """The last root that was accepted on this node."""

    version: int
    sha256: str

    @classmethod
    def of(cls, floors: FloorsLike) -> RootPin | None:
        """What the floors know of it; None when they know a version at most."""
        return cls(floors.root_version, floors.root_sha256) if floors.root_sha256 else None


def parse_trust_root(payload: bytes) -> TrustRoot:
    """The document of a root's payload; FormatError when it contradicts itself.  Signatures are not looked at."""
    value = strictjson.parse_canonical(payload, max_bytes=MAX_ROOT_BYTES, what="the trust root")
    root = decode(TrustRoot, value, "trust root")
    _check_keys(root)
    _check_roles(root)
    return root


def sign_trust_root(root: TrustRoot, private_keys: Sequence[PrivateKey]) -> Envelope:
    parse_trust_root(root.payload())
    return sign_payload(root.payload(), TRUST_ROOT_TYPE, private_keys)


def verify_chain(documents: Sequence[bytes], now: Now, *, floor_version: int = 0, pin: RootPin | None = None) -> TrustRoot:
    """The last root of a chain of envelopes, oldest first; a single one is a chain too.

    `pin` is the root accepted last: the chain must hold it unchanged.  VerificationError `trust-root-invalid` for a break in
    the chain, missing signatures, a version below the floor, or an expired last root.
    """
    if not 1 <= len(documents) <= MAX_ROOTS:
        raise _refuse(f"expected 1 to {MAX_ROOTS} documents, found {len(documents)}")
    roots = _verify_all(tuple(documents))
    if pin is not None:
        _check_pin(roots, pin)
    root = roots[-1]
    if root.version < floor_version:
        raise _refuse(f"expected version {floor_version} or later, found {root.version}")
    check_root_expiry(root, now)
    return root


def verify_links(documents: Sequence[bytes]) -> tuple[TrustRoot, ...]:
    """All roots of a chain whose links hold, whatever the time: what the next root is made from."""
    return _verify_all(tuple(documents)) if documents else ()


def missing_signatures(envelope: Envelope, root: TrustRoot, before: TrustRoot | None) -> Mapping[int, int]:
    """Version → how many signatures of its `root` keys are still missing; empty when `root` can follow `before`."""
    missing: dict[int, int] = {}
    for asking in (before, root):
        if asking is None:
            continue
        role = asking.roles[ROOT_ROLE]
        try:
            found = len(verify_envelope(envelope, _usable_root_keys(asking), 1).signers)
        except VerificationError:
            found = 0
        if found < role.threshold:
            missing[asking.version] = role.threshold - found
    return missing


@functools.lru_cache(maxsize=4)
def _verify_all(documents: tuple[bytes, ...]) -> tuple[TrustRoot, ...]:
    """Signatures and form are a function of the bytes, so they are checked once; time, floor and pin are checked every time."""
    roots: list[TrustRoot] = []
    for document in documents:
        roots.append(_verify_one(document, roots[-1] if roots else None))
    return tuple(roots)


def _check_pin(roots: Sequence[TrustRoot], pin: RootPin) -> None:
    same = [root for root in roots if root.version == pin.version]
    if not same:
        raise _refuse(f"the chain does not hold root {pin.version}, which was accepted before")
    if same[0].digest() != pin.sha256:
        raise _refuse(f"root {pin.version} is not the one accepted before: expected {pin.sha256}, found {same[0].digest()}")


def check_root_expiry(root: TrustRoot, now: Now) -> None:
    if root.expires_ms <= now.wall_ms:
        raise _refuse(f"root {root.version} expired at {utc_text(root.expires_ms)}, it is {utc_text(now.wall_ms)}")


def _verify_one(document: bytes, before: TrustRoot | None) -> TrustRoot:
    try:
        envelope = parse_envelope(document, TRUST_ROOT_TYPE)
        if before is not None:
            verify_envelope(envelope, _usable_root_keys(before), before.roles[ROOT_ROLE].threshold)
        root = parse_trust_root(envelope.payload)
        verify_envelope(envelope, _usable_root_keys(root), root.roles[ROOT_ROLE].threshold)
    except (FormatError, VerificationError) as exc:
        raise _refuse(exc.message) from exc
    if before is not None and root.version != before.version + 1:
        raise _refuse(f"expected version {before.version + 1} after {before.version}, found {root.version}")
    if before is not None and root.development != before.development:
        raise _refuse("a development root and a production root are in one chain")
    return root


def _usable_root_keys(root: TrustRoot) -> tuple[PublicKey, ...]:
    return tuple(key for key in root.public_keys(ROOT_ROLE) if key.keyid not in root.revoked_keys)


def _check_keys(root: TrustRoot) -> None:
    for keyid, key in root.keys.items():
        found = PublicKey.from_pem(key.pem)
        if found.keyid != keyid:
            raise _malformed(f"the key {key.name or keyid[:12]!r} has the id {found.keyid}, not {keyid[:64]}")
        if found.pem.strip() != key.pem.strip():
            raise _malformed(f"the key {keyid[:12]} is not written in its usual form")
        if key.verify_required and key.application is None:
            raise _malformed(f"the key {keyid[:12]} is in no authenticator, so nobody can be verified for it")


def _check_roles(root: TrustRoot) -> None:
    if ROOT_ROLE not in root.roles:
        raise _malformed("it has no role named root")
    holders: dict[str, str] = {}
    for name, role in sorted(root.roles.items()):
        decode(_NamedRole, {"name": name}, "trust root.roles")
        if len(set(role.keys)) != len(role.keys) or role.threshold > len(role.keys):
            raise _malformed(f"role {name} asks for {role.threshold} of {len(set(role.keys))} distinct keys")
        for keyid in role.keys:
            if keyid not in root.keys:
                raise _malformed(f"role {name} names the key {keyid[:12]}, which is not listed")
            if name != ROOT_ROLE and holders.setdefault(keyid, name) != name:
                raise _malformed(f"the key {keyid[:12]} has two roles, {holders[keyid]} and {name}")


@dataclass(frozen=True)
class _NamedRole:
    name: Name


def _malformed(cause: str) -> FormatError:
    return FormatError(f"cannot read the trust root: {cause}", hint="Make it again: `scaleoutctl trust init`.")


def _refuse(cause: str) -> VerificationError:
    return VerificationError(
        f"cannot trust the root of trust: {cause}",
        code="trust-root-invalid",
        hint="Get the chain of roots from its owner. A deliberate break needs `scaleoutctl trust reset --reason`.",
    )
