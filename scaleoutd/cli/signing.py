# SPDX-License-Identifier: Apache-2.0
"""Makes the manifest of a folder: what `sign`, and the development mode, do between reading files and signing bytes."""

from __future__ import annotations

import stat
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from scaleoutd.cli.progress import Progress
from scaleoutd.core.clock import DAY_MS, Now
from scaleoutd.core.envelope import MAX_ENVELOPE_BYTES, STATEMENT_TYPE, Envelope, parse_envelope, serialise_envelope, sign_payload
from scaleoutd.core.ignore import parse_ignore_file, unique
from scaleoutd.core.keys import PrivateKey
from scaleoutd.core.manifest import MANIFEST_NAME, Expected, FileEntry, Manifest, manifest_payload, parse_manifest
from scaleoutd.core.project import DEFAULT_IGNORED, IGNORE_FILE, PROJECT_FILE, parse_project
from scaleoutd.durable import replace_file, storage_errors
from scaleoutd.errors import ConfigError, VerificationError
from scaleoutd.runner.hashing import digest_file
from scaleoutd.runner.tree import Node, Tree, read_small
from scaleoutd.runner.verify import is_executable, project_nodes, refuse, unsafe

DEVELOPMENT_ENVIRONMENT = "default"
BEFORE_MS = 5 * 60 * 1000  # a node's clock may be that far behind the signer's
MAX_SMALL_BYTES = 1024 * 1024
_KEY_ENDINGS = (".key", ".pem")


@dataclass(frozen=True)
class Terms:
    """What is signed beside the files.  None: as in the manifest before, or the default."""

    project: str | None = None
    version: int | None = None
    valid_days: int = 365
    environments: Mapping[str, Expected] | None = None
    data_sets: Mapping[str, Expected] | None = None
    policy_sha256: str | None = None
    development: bool = False


@dataclass(frozen=True)
class FolderContent:
    """A project's folder as it is: its files with digests, its steps, and what is left out."""

    files: tuple[FileEntry, ...]
    steps: Mapping[str, tuple[str, ...]]
    ignored: tuple[str, ...]
    startup_file: str | None = field(default=None)


def now() -> Now:
    """For commands: this machine's clock, taken as it is."""
    return Now(time.time_ns() // 1_000_000, time.monotonic_ns() // 1_000_000, synchronised=True)


def locate_project(folder: Path) -> Path:
    """The folder that holds scaleout.yaml: `folder` itself, else `folder/client` (PROTOCOL.md section 2)."""
    for candidate in (folder, folder / "client"):
        if (candidate / PROJECT_FILE).is_file():
            return candidate.absolute()
    raise ConfigError(
        f"cannot find a project in {folder}: expected {PROJECT_FILE} in it or in {folder / 'client'}",
        code="config-missing",
        hint=f"Make one: `scaleoutctl init {folder}`.",
    )


def read_folder(tree: Tree) -> FolderContent:
    """Everything that a manifest says of a folder; VerificationError for what may be in no project."""
    with storage_errors(f"read the project {tree.root}"):
        project = parse_project(read_small(tree, PROJECT_FILE, MAX_SMALL_BYTES), name=str(tree.root / PROJECT_FILE))
        ignored = ignored_patterns(tree)
        nodes = project_nodes(tree, ignored)
        _refuse_unsafe(tree, nodes)
        files = []
        with Progress("reading the project", sum(node.size_bytes for node in nodes)) as done:
            for node in nodes:
                found = digest_file(tree, node.path, done)
                files.append(FileEntry(node.path, found.size_bytes, found.sha256, is_executable(node.mode), found.chunks))
    others = {"startup": project.startup, "build": project.build}
    steps = {**project.steps, **{name: command for name, command in others.items() if command is not None}}
    return FolderContent(tuple(files), steps, ignored, project.startup_file)


def make_manifest(content: FolderContent, terms: Terms, before: Manifest | None, at: Now, folder_name: str) -> Manifest:
    """The next manifest: one version above the one before, with what it expects unless the terms say otherwise."""
    kept = dict(before.environments) if before else {}
    if before is not None and before.development and not terms.development:
        kept.pop(DEVELOPMENT_ENVIRONMENT, None)  # the foreground's own name for it; no policy needs to have it
    return Manifest(
        project=terms.project or (before.project if before else plain_name(folder_name)),
        version=terms.version if terms.version is not None else (before.version + 1 if before else 1),
        not_before_ms=max(0, at.wall_ms - BEFORE_MS),
        expires_ms=at.wall_ms + terms.valid_days * DAY_MS,
        files=content.files,
        steps=content.steps,
        ignored=content.ignored,
        environments=terms.environments if terms.environments is not None else kept,
        data_sets=terms.data_sets if terms.data_sets is not None else (before.data_sets if before else {}),
        startup_file=content.startup_file,
        policy_sha256=terms.policy_sha256,
        development=terms.development,
    )


def write_manifest(folder: Path, manifest: Manifest, private_keys: Sequence[PrivateKey]) -> None:
    write_envelope(folder, sign_payload(manifest_payload(manifest), STATEMENT_TYPE, private_keys))


def unsigned_envelope(manifest: Manifest) -> Envelope:
    """The manifest as it waits for its first signature; no node takes it like that."""
    return Envelope(manifest_payload(manifest), STATEMENT_TYPE, ())


def write_envelope(folder: Path, envelope: Envelope) -> None:
    replace_file(folder / MANIFEST_NAME, serialise_envelope(envelope), mode=0o644)


def read_unverified(tree: Tree) -> tuple[Envelope, Manifest] | None:
    """The manifest that lies in the folder, signatures not looked at: good for a version number, never for trust."""
    try:
        data = read_small(tree, MANIFEST_NAME, MAX_ENVELOPE_BYTES)
    except FileNotFoundError:
        return None
    except OSError as exc:
        raise VerificationError(f"cannot read {tree.root / MANIFEST_NAME}: {exc.strerror}", code="file-type") from exc
    envelope = parse_envelope(data, STATEMENT_TYPE, unsigned=True)
    return envelope, parse_manifest(envelope.payload)


def changed_files(before: Manifest | None, after: Manifest) -> tuple[str, ...]:
    """Paths that were added, removed or changed."""
    old = {entry.path: entry for entry in before.files} if before else {}
    new = {entry.path: entry for entry in after.files}
    return tuple(sorted(path for path in old.keys() | new.keys() if old.get(path) != new.get(path)))


def same_content(before: Manifest, after: Manifest) -> bool:
    """Whether they differ in version and dates only."""
    return replace(before, version=1, not_before_ms=0, expires_ms=1) == replace(after, version=1, not_before_ms=0, expires_ms=1)


def plain_name(folder_name: str) -> str:
    """A folder's name as a project name: other characters become a dash."""
    kept = "".join(char if char.isascii() and (char.isalnum() or char in "._-") else "-" for char in folder_name)
    return kept.lstrip("._-")[:128] or "project"


def ignored_patterns(tree: Tree) -> tuple[str, ...]:
    """What is never part of a project, and what its .scaleoutignore names."""
    try:
        own = parse_ignore_file(read_small(tree, IGNORE_FILE, MAX_SMALL_BYTES).decode("utf-8"))
    except FileNotFoundError:
        own = ()
    except UnicodeDecodeError as exc:
        raise ConfigError(f"cannot read {tree.root / IGNORE_FILE}: byte {exc.start} is not UTF-8") from exc
    return unique((*DEFAULT_IGNORED, *own))


def _refuse_unsafe(tree: Tree, nodes: Sequence[Node]) -> None:
    inside: dict[tuple[int, int], int] = {}
    for node in nodes:
        inside[(node.device, node.inode)] = inside.get((node.device, node.inode), 0) + 1
    found = (unsafe(node, inside[(node.device, node.inode)]) for node in nodes)
    refuse([difference for difference in found if difference is not None])
    for node in nodes:
        is_candidate = node.path.endswith(_KEY_ENDINGS) and stat.S_ISREG(node.mode) and node.size_bytes <= MAX_SMALL_BYTES
        if is_candidate and b"PRIVATE KEY" in read_small(tree, node.path, MAX_SMALL_BYTES):
            raise ConfigError(
                f"cannot sign {tree.root}: {node.path} is a private key, and every step could read it",
                hint="Move the key out of the project.",
            )
