# SPDX-License-Identifier: Apache-2.0
"""The signed manifest of a project: what it is made of, how it is run, and for how long it may be.

An in-toto Statement v1 with a predicate of this project, as RFC 8785 bytes in a DSSE envelope.  docs/manifest-format.md
is the specification for people.

Rules:
  1. Nothing is read from a payload before a trusted key's signature on it fits.
  2. Files are sorted by path; a path is NFC UTF-8, relative, without "..", control characters or a second spelling that
     a case-insensitive file system would take for the same.
  3. A file above `CHUNK_BYTES` has a digest for each chunk; then the chunks are what is verified.
  4. The manifest's digest is the SHA-256 of the payload, so adding a signature does not change it.
"""

from __future__ import annotations

import hashlib
import itertools
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal

from scaleoutd.core import strictjson
from scaleoutd.core.clock import FloorsLike, Now, check_clock, utc_text
from scaleoutd.core.envelope import MAX_ENVELOPE_BYTES, STATEMENT_TYPE, parse_envelope, verify_envelope
from scaleoutd.core.keys import PublicKey
from scaleoutd.core.records import Count, Name, Natural, Positive, Sha256Hex, Text, decode, encode
from scaleoutd.core.trust import TrustRoot, check_root_expiry
from scaleoutd.errors import FormatError, VerificationError

MANIFEST_NAME = "scaleout.manifest.json"  # lies in the project's folder and is not listed in itself
PREDICATE_TYPE = "urn:scaleoutd:manifest:v1"
CHUNK_BYTES = 64 * 1024 * 1024
MAX_FILES = 100_000
MAX_COMPONENT_BYTES = 255
STEPS = ("train", "validate", "predict", "startup", "build")
_SIGN_AGAIN = "Sign again: `scaleoutctl sign`."

# Characters that reorder or hide text (Unicode technical report 36, section 2.6): a name must read as it is.
_MISLEADING = frozenset(map(chr, (0x200E, 0x200F, *range(0x2028, 0x202F), *range(0x2066, 0x206A), 0xFEFF)))

RelativePath = Annotated[str, Text(1024, "", 1)]
Argument = Annotated[str, Text(4096, r"[^\x00]*")]
Command = Annotated[tuple[Argument, ...], Count(1, 256)]


@dataclass(frozen=True)
class FileEntry:
    """`chunks`: SHA-256 of each `CHUNK_BYTES` of a file that is larger than that, else None."""

    path: RelativePath
    size_bytes: Natural
    sha256: Sha256Hex
    executable: bool = False
    chunks: Annotated[tuple[Sha256Hex, ...], Count(2, 65_536)] | None = None


@dataclass(frozen=True)
class Expected:
    """What the project expects of an environment or data set: its digest, or None when only the id is demanded."""

    sha256: Sha256Hex | None = None


@dataclass(frozen=True)
class Manifest:
    """The predicate.  Times are Unix milliseconds; `steps` holds argument vectors, split when it was signed."""

    project: Name
    version: Positive
    not_before_ms: Natural
    expires_ms: Positive
    files: Annotated[tuple[FileEntry, ...], Count(1, MAX_FILES)]
    steps: Annotated[Mapping[str, Command], Count(0, len(STEPS))]
    ignored: Annotated[tuple[Annotated[str, Text(256, "", 1)], ...], Count(0, 512)] = ()
    environments: Annotated[Mapping[str, Expected], Count(0, 64)] = field(default_factory=dict)
    data_sets: Annotated[Mapping[str, Expected], Count(0, 64)] = field(default_factory=dict)
    startup_file: RelativePath | None = None  # importer projects
    policy_sha256: Sha256Hex | None = None
    development: bool = False  # signed by a program for its own user; only a development trust root takes it

    @property
    def size_bytes(self) -> int:
        return sum(entry.size_bytes for entry in self.files)


@dataclass(frozen=True)
class VerifiedManifest:
    """A manifest that was proven; `sha256` of its payload, `roles` with the keys that fulfilled them."""

    manifest: Manifest
    sha256: str
    signers: tuple[str, ...]
    roles: Mapping[str, tuple[str, ...]]
    root_version: int
    development: bool


@dataclass(frozen=True)
class _Digests:
    sha256: Sha256Hex


@dataclass(frozen=True)
class _Subject:
    name: Name
    digest: _Digests


@dataclass(frozen=True)
class _Statement:
    type: Literal["https://in-toto.io/Statement/v1"] = field(metadata={"json": "_type"})
    subject: Annotated[tuple[_Subject, ...], Count(1, 1)]
    predicate_type: Literal["urn:scaleoutd:manifest:v1"] = field(metadata={"json": "predicateType"})
    predicate: Manifest


def manifest_payload(manifest: Manifest) -> bytes:
    """The canonical statement that is signed; FormatError `manifest-invalid` when the manifest contradicts itself."""
    check_manifest(manifest)
    subject = _Subject(manifest.project, _Digests(files_digest(manifest.files)))
    statement = _Statement("https://in-toto.io/Statement/v1", (subject,), "urn:scaleoutd:manifest:v1", manifest)
    return strictjson.canonical(encode(statement))


def parse_manifest(payload: bytes) -> Manifest:
    """The manifest of a payload whose signatures were verified; FormatError when it is not exactly what `sign` writes."""
    try:
        value = strictjson.parse_canonical(payload, max_bytes=MAX_ENVELOPE_BYTES, what="the manifest")
        statement = decode(_Statement, value, "statement")
        manifest = statement.predicate
        check_manifest(manifest)
    except FormatError as exc:
        raise FormatError(exc.message, code=exc.code, hint=_SIGN_AGAIN) from exc
    subject = statement.subject[0]
    if subject.name != manifest.project or subject.digest.sha256 != files_digest(manifest.files):
        raise _malformed("its subject is not the digest of its files")
    return manifest


def files_digest(files: Sequence[FileEntry]) -> str:
    """SHA-256 of the canonical list of files: the one digest of a project's content."""
    return hashlib.sha256(strictjson.canonical([encode(entry) for entry in files])).hexdigest()


def verify_manifest(
    envelope_bytes: bytes, root: TrustRoot, now: Now, floors: FloorsLike, *, project: str | None = None
) -> VerifiedManifest:
    """Proves the envelope of a project against root, time and floors; `project` is the name that the policy expects."""
    check_clock(now, floors)
    check_root_expiry(root, now)
    verified = verify_signatures(envelope_bytes, root)
    check_admission(verified, root, now, floors, project=project)
    return verified


def verify_signatures(envelope_bytes: bytes, root: TrustRoot) -> VerifiedManifest:
    """The part of the proof that time and floors do not change: a function of these two values, fit for a cache."""
    envelope = parse_envelope(envelope_bytes, STATEMENT_TYPE)
    verified = verify_envelope(envelope, root.public_keys(), 1)
    manifest = parse_manifest(verified.payload)
    if manifest.development != root.development:
        kinds = {True: "development", False: "production"}
        raise VerificationError(
            f"cannot accept version {manifest.version} of {manifest.project}: it was signed for {kinds[manifest.development]},"
            f" the trust root is for {kinds[root.development]}",
            code="signature-threshold",
            hint="Sign it with a key of this trust root: `scaleoutctl sign`.",
        )
    roles = root.authorize(manifest.project, verified.signers)
    sha256 = hashlib.sha256(verified.payload).hexdigest()
    return VerifiedManifest(manifest, sha256, _ids(verified.signers), roles, root.version, root.development)


def check_admission(
    verified: VerifiedManifest, root: TrustRoot, now: Now, floors: FloorsLike, *, project: str | None = None
) -> None:
    """The part of the proof that must be done again for each run."""
    manifest = verified.manifest
    check_clock(now, floors)
    check_root_expiry(root, now)
    if project is not None and manifest.project != project:
        raise VerificationError(
            f"cannot accept the manifest: expected project {project}, found {manifest.project}",
            code="project-mismatch",
            hint=f"Correct project: in the policy, or sign it under that name: `scaleoutctl sign --name {project}`.",
            facts={"expected": project, "found": manifest.project},
        )
    if verified.sha256 in root.revoked_manifests:
        raise VerificationError(
            f"cannot accept version {manifest.version} of {manifest.project}: its manifest {verified.sha256} is revoked",
            code="manifest-revoked",
            hint="Sign a version that was reviewed, and install it: `scaleoutctl sign`, `scaleoutctl project install`.",
        )
    check_dates(manifest, now)
    check_replay(manifest, floors)


def check_dates(manifest: Manifest, now: Now) -> None:
    if now.wall_ms < manifest.not_before_ms:
        raise VerificationError(
            f"cannot accept version {manifest.version} of {manifest.project}: it is valid from"
            f" {utc_text(manifest.not_before_ms)}, it is {utc_text(now.wall_ms)}",
            code="manifest-not-yet-valid",
            hint="Wait until then, or set this clock right: `timedatectl`.",
            facts={"expected": f"from {utc_text(manifest.not_before_ms)}", "found": utc_text(now.wall_ms)},
        )
    if now.wall_ms >= manifest.expires_ms:
        raise VerificationError(
            f"cannot accept version {manifest.version} of {manifest.project}: it expired at"
            f" {utc_text(manifest.expires_ms)}, it is {utc_text(now.wall_ms)}",
            code="manifest-expired",
            hint="Review the project and sign it again: `scaleoutctl sign`.",
            facts={"expected": f"before {utc_text(manifest.expires_ms)}", "found": utc_text(now.wall_ms)},
        )


def check_replay(manifest: Manifest, floors: FloorsLike) -> None:
    accepted = floors.manifest_versions.get(manifest.project, 0)
    if manifest.version < accepted:
        raise VerificationError(
            f"cannot accept version {manifest.version} of {manifest.project}: expected {accepted} or later, which was accepted"
            " before",
            code="manifest-replayed",
            hint="To go back to older code, sign it again under a new version: `scaleoutctl sign`.",
            facts={"expected": f"version {accepted} or later", "found": f"version {manifest.version}"},
        )


def check_manifest(manifest: Manifest) -> None:
    """FormatError `manifest-invalid` for dates, steps, chunks or file names that cannot be."""
    if manifest.not_before_ms >= manifest.expires_ms:
        raise _malformed("it expires before it begins")
    for step in manifest.steps:
        if step not in STEPS:
            raise _malformed(f"{step[:64]!r} is no step; steps are {', '.join(STEPS)}")
    for name in (*manifest.environments, *manifest.data_sets):
        decode(_Named, {"name": name}, "manifest id")
    paths = [entry.path for entry in manifest.files]
    check_paths(paths)
    for entry in manifest.files:
        expected = -(-entry.size_bytes // CHUNK_BYTES) if entry.size_bytes > CHUNK_BYTES else 0
        found = len(entry.chunks) if entry.chunks is not None else 0
        if expected != found:
            raise _malformed(f"{entry.path} has {found} chunk digests, its size asks for {expected}")
    if manifest.startup_file is not None and manifest.startup_file not in paths:
        raise _malformed(f"the startup file {manifest.startup_file} is not among its files")


def check_paths(paths: Sequence[str]) -> None:
    """Refuses names that are unsafe, unsorted, doubled, or equal to another one on some file system."""
    for before, path in zip(("", *paths), paths, strict=False):
        check_path(path)
        if path <= before:
            raise _bad_name(path, "it is doubled or not in order")
    _check_apart(paths)


def check_path(path: str) -> None:
    """VerificationError `file-name` for a path that could leave the folder or that does not read as it is."""
    if path == MANIFEST_NAME:
        raise _bad_name(path, "the manifest is not listed in itself")
    if not path.isascii():
        if any("\ud800" <= char <= "\udfff" for char in path):
            raise _bad_name(path, "it is not UTF-8")
        if unicodedata.normalize("NFC", path) != path:
            raise _bad_name(path, "it is not in Unicode form NFC")
    if not path.isprintable() and any(unicodedata.category(char) == "Cc" or char in _MISLEADING for char in path):
        raise _bad_name(path, "it has control or direction characters")
    for component in path.split("/"):
        if component in ("", ".", ".."):
            raise _bad_name(path, "it is absolute or has an empty, '.' or '..' component")
        if len(component.encode("utf-8")) > MAX_COMPONENT_BYTES:
            raise _bad_name(path, f"a component is longer than {MAX_COMPONENT_BYTES} bytes")


def _check_apart(paths: Sequence[str]) -> None:
    """Refuses a file in a file, and two spellings of a name: lib/a and Lib/b are one folder where case does not count.

    Names that begin alike lie side by side once they are sorted without case, so that each is compared with its neighbour only.
    To keep every folder's name instead takes the square of a path's length: gigabytes for the largest manifest.
    """
    # The last "/" keeps a name beside what lies in it: "a-" is not between "a" and "a/b".
    ordered = sorted((f"{_folded(path)}/", path) for path in paths)
    for (folded_before, before), (folded, path) in itertools.pairwise(ordered):
        if folded_before[:-1] == before and folded[:-1] == path:  # as most names are; it saves the comparison by components
            if folded.startswith(folded_before):
                raise _bad_name(path, f"{before} is a file")
        else:
            _check_neighbours(before, path)


def _check_neighbours(before: str, path: str) -> None:
    one, other = before.split("/"), path.split("/")
    for index, (left, right) in enumerate(zip(one, other, strict=False)):
        if left != right:
            if _folded(left) == _folded(right):
                collides = "/".join(one[: index + 1])
                raise _bad_name(path, f"it collides with {collides} where case does not count")
            return
    raise _bad_name(max(before, path, key=len), f"{min(before, path, key=len)} is a file")


def _folded(name: str) -> str:
    return name.lower() if name.isascii() else unicodedata.normalize("NFC", name.casefold())


def _ids(keys: Sequence[PublicKey]) -> tuple[str, ...]:
    return tuple(key.keyid for key in keys)


@dataclass(frozen=True)
class _Named:
    name: Name


def _bad_name(path: str, cause: str) -> VerificationError:
    shown = path.encode("unicode_escape").decode("ascii")[:200]
    message = f"cannot use the file name {shown}: {cause}"
    return VerificationError(message, code="file-name", hint="Rename the file, then sign again: `scaleoutctl sign`.")


def _malformed(cause: str) -> FormatError:
    return FormatError(f"cannot use the manifest: {cause}", code="manifest-invalid", hint=_SIGN_AGAIN)
