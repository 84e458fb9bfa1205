# SPDX-License-Identifier: Apache-2.0
"""Proves a project's folder: its envelope against the trust root, its files against the manifest.

`prove` looks at the envelope only; the files are proven while `store.take_snapshot` copies them, so that what was proven
is what runs.  `check_project` proves them where they lie, for people.
"""

from __future__ import annotations

import hashlib
import stat
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from scaleoutd.core.clock import FloorsLike, Now
from scaleoutd.core.envelope import MAX_ENVELOPE_BYTES
from scaleoutd.core.ignore import IgnoreRules
from scaleoutd.core.manifest import (
    MANIFEST_NAME,
    FileEntry,
    Manifest,
    VerifiedManifest,
    check_admission,
    check_path,
    verify_signatures,
)
from scaleoutd.core.policy import Policy
from scaleoutd.core.trust import TrustRoot
from scaleoutd.durable import storage_errors
from scaleoutd.errors import VerificationError
from scaleoutd.runner.hashing import Difference, check_files
from scaleoutd.runner.rootfile import read_trust_root as read_trust_root
from scaleoutd.runner.tree import Node, Tree, kind_of, read_small

_SPECIAL_BITS = stat.S_ISUID | stat.S_ISGID | stat.S_ISVTX
_HINTS = {
    "file-changed": "See what changed, then sign again with `scaleoutctl sign`, or put the signed file back.",
    "file-missing": "Put the file back, or sign again with `scaleoutctl sign`.",
    "file-extra": "Remove the file, name it in .scaleoutignore, or add it: `scaleoutctl sign`.",
    "file-mode": "Set the mode back with chmod, or sign again with `scaleoutctl sign`.",
    "file-type": "Replace it by a regular file with one link, or name it in .scaleoutignore; then `scaleoutctl sign`.",
    "file-name": "Rename the file, then sign again with `scaleoutctl sign`.",
}


@dataclass(frozen=True)
class Proven:
    """A project whose envelope was proven; its files are proven when they are copied."""

    manifest: VerifiedManifest
    envelope_sha256: str
    project_path: Path


# Signatures and form of an envelope under a root are a function of their bytes.  Time and floors are checked every time.
_PROVEN: OrderedDict[tuple[str, str], VerifiedManifest] = OrderedDict()
_PROVEN_MAX = 4


def prove(project_path: Path, root: TrustRoot, policy: Policy, floors: FloorsLike, now: Now) -> Proven:
    """Step 1 of "The way of a task": the envelope of the project against root, policy, time and floors."""
    if root.development and not policy.development:
        raise VerificationError(
            "cannot use the trust root: it was made for development, and this node has a policy",
            code="trust-root-invalid",
            hint="Make a trust root with `scaleoutctl trust init` and name it under trust_root: in the policy.",
        )
    envelope = read_envelope(project_path)
    verified = verify_cached(envelope, root)
    check_admission(verified, root, now, floors, project=policy.project.name)
    return Proven(verified, hashlib.sha256(envelope).hexdigest(), project_path)


def verify_cached(envelope: bytes, root: TrustRoot) -> VerifiedManifest:
    """`verify_signatures`, remembered for the envelopes seen last."""
    key = (hashlib.sha256(envelope).hexdigest(), root.digest())
    known = _PROVEN.get(key)
    if known is None:
        known = _PROVEN[key] = verify_signatures(envelope, root)
        while len(_PROVEN) > _PROVEN_MAX:
            _PROVEN.popitem(last=False)
    return known


def read_envelope(project_path: Path) -> bytes:
    """The bytes of the project's manifest; VerificationError `manifest-missing`."""
    with Tree(project_path) as tree:
        try:
            return read_small(tree, MANIFEST_NAME, MAX_ENVELOPE_BYTES)
        except FileNotFoundError as exc:
            raise VerificationError(
                f"cannot run {project_path}: expected a signed manifest {MANIFEST_NAME} in it, found none",
                code="manifest-missing",
                hint=f"Sign the project: `scaleoutctl sign {project_path}`.",
            ) from exc
        except OSError as exc:
            raise VerificationError(
                f"cannot read {project_path / MANIFEST_NAME}: {exc.strerror}", code="file-type", hint=_HINTS["file-type"]
            ) from exc


def check_project(proven: Proven, on_bytes: Callable[[int], None] = lambda count: None) -> list[Difference]:
    """All differences between the folder and the manifest, bytes included, without copying; `on_bytes` hears how far it is."""
    manifest = proven.manifest.manifest
    with Tree(proven.project_path) as tree:
        differences = compare(manifest, project_nodes(tree, manifest.ignored))
        bad = {difference.path for difference in differences}
        with storage_errors(f"read the project {proven.project_path}"):
            differences += check_files(tree, [entry for entry in manifest.files if entry.path not in bad], None, on_bytes)
    return sorted(differences, key=lambda difference: difference.path)


def project_nodes(tree: Tree, ignored: Sequence[str]) -> list[Node]:
    """What the folder holds besides its manifest and what is ignored.

    The new manifest of a signer at work (`durable.replace_file`) is no part of the project either: nothing copies it.
    """
    half_written = f".{MANIFEST_NAME}."
    nodes = tree.walk(IgnoreRules(ignored))
    return [node for node in nodes if node.path != MANIFEST_NAME and not node.path.startswith(half_written)]


def compare(manifest: Manifest, nodes: Sequence[Node]) -> list[Difference]:
    """Names, types, sizes and modes of the folder against the manifest; the bytes are `check_files`'s."""
    expected = {entry.path: entry for entry in manifest.files}
    spellings = {entry.path.casefold() for entry in manifest.files}
    links = Counter((node.device, node.inode) for node in nodes)
    differences: list[Difference] = []
    for node in nodes:
        entry = expected.pop(node.path, None)
        difference = unsafe(node, links[(node.device, node.inode)])
        if difference is None and entry is None:
            difference = _extra(node, spellings)
        if difference is None and entry is not None:
            difference = _compare_entry(entry, node)
        if difference is not None:
            differences.append(difference)
    for path, entry in expected.items():
        differences.append(Difference("file-missing", path, f"a file of {entry.size_bytes} bytes", "none"))
    return sorted(differences, key=lambda difference: difference.path)


def unsafe(node: Node, links_inside: int) -> Difference | None:
    """Why a node may be in no project at all, signed or not."""
    try:
        check_path(node.path)
    except VerificationError as exc:
        return Difference("file-name", node.path, "a plain UTF-8 name", exc.message.rpartition(": ")[2])
    if not stat.S_ISREG(node.mode):
        return Difference("file-type", node.path, "a regular file", kind_of(node.mode))
    if node.mode & _SPECIAL_BITS:
        return Difference("file-mode", node.path, "no setuid, setgid or sticky bit", f"mode {stat.S_IMODE(node.mode):04o}")
    if node.links > links_inside:
        found = f"{node.links} links, {links_inside} of them inside"
        return Difference("file-type", node.path, "no hard link out of the folder", found)
    return None


def refuse(differences: Sequence[Difference]) -> None:
    """Raises VerificationError for the first difference and counts the others; nothing when there is none."""
    if not differences:
        return
    first = differences[0]
    more = f" (and {len(differences) - 1} more)" if len(differences) > 1 else ""
    shown = first.path.encode("unicode_escape").decode("ascii")[:200]
    raise VerificationError(
        f"cannot run the project: {shown}: expected {first.expected}, found {first.found}{more}",
        code=first.code,
        hint=_HINTS[first.code],
        facts={"file": shown, "expected": first.expected, "found": first.found},
    )


def is_executable(mode: int) -> bool:
    return bool(mode & 0o111)


def _extra(node: Node, spellings: set[str]) -> Difference:
    if node.path.casefold() in spellings:
        return Difference("file-name", node.path, "one spelling of a name", "another spelling of a signed file")
    return Difference("file-extra", node.path, "no such file in the manifest", f"a file of {node.size_bytes} bytes")


def _compare_entry(entry: FileEntry, node: Node) -> Difference | None:
    if entry.executable != is_executable(node.mode):
        wanted = "executable" if entry.executable else "not executable"
        return Difference("file-mode", entry.path, wanted, f"mode {stat.S_IMODE(node.mode):04o}")
    if entry.size_bytes != node.size_bytes:
        return Difference("file-changed", entry.path, f"{entry.size_bytes} bytes", f"{node.size_bytes} bytes")
    return None
