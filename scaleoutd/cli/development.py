# SPDX-License-Identifier: Apache-2.0
"""Signing without ceremony, for one's own work: a key and a trust root that this user's programs made for themselves.

Rules:
  1. Key and root lie in the user's home (~/.config/scaleoutd/development, 0700; files 0600), never under /etc.
  2. Both root and manifest say `development`; a node with a policy takes neither.
  3. A manifest that was signed for production is never replaced: whoever signed it meant exactly those files.
"""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from scaleoutd.cli.keygen import new_private_key, read_private_key, write_key_pair
from scaleoutd.cli.signing import (
    Terms,
    changed_files,
    ignored_patterns,
    make_manifest,
    now,
    read_folder,
    read_unverified,
    same_content,
    write_manifest,
)
from scaleoutd.core import strictjson
from scaleoutd.core.clock import DAY_MS, Now
from scaleoutd.core.envelope import serialise_envelope, verify_envelope
from scaleoutd.core.ignore import IgnoreRules
from scaleoutd.core.keys import PrivateKey, public_key_of
from scaleoutd.core.manifest import MANIFEST_NAME, Expected, Manifest
from scaleoutd.core.trust import Role, TrustedKey, TrustRoot, sign_trust_root
from scaleoutd.durable import make_private_folder, replace_file, storage_errors
from scaleoutd.errors import FormatError, VerificationError
from scaleoutd.runner.rootfile import read_trust_root
from scaleoutd.runner.tree import Node, Tree, identity, is_fresh
from scaleoutd.runner.verify import project_nodes

VALID_DAYS = 30  # of a manifest; it is signed again when a third of that is left
ROOT_DAYS = 3650
KEY_NAME = "development"
VERSIONS = "versions.json"


@dataclass(frozen=True)
class Resigned:
    """What `resign_if_changed` did.  `signed` False: nothing had changed.  `first`: there was no manifest before."""

    signed: bool
    first: bool
    version: int
    changed: tuple[str, ...]
    project: str


def development_root_path(home: Path) -> Path:
    """Where the trust root lies that goes with `development_signer(home)`."""
    return _folder(home) / "root" / "1.json"


def development_signer(home: Path) -> tuple[PrivateKey, TrustRoot]:
    """This user's development key and trust root, made on first use.  Two programs may call it at once."""
    folder = _folder(home)
    if not folder.is_dir():
        _make(folder)
    private_key = read_private_key(folder / f"{KEY_NAME}.key")
    root = read_trust_root(development_root_path(home), now())
    if not root.development or public_key_of(private_key).keyid not in root.keys:
        raise VerificationError(
            f"cannot use the development key in {folder}: its trust root is of another key",
            code="trust-root-invalid",
            hint=f"Remove {folder}; a new one is made.",
        )
    return private_key, root


def resign_if_changed(
    project: Path,
    private_key: PrivateKey,
    *,
    name: str | None = None,
    environments: Iterable[str] = (),
    data_sets: Iterable[str] = (),
    versions: Path | None = None,
) -> Resigned:
    """Signs the project again, one version up, when a file, a step or an id has changed.  Cheap when nothing has.

    `versions` remembers the highest version of each project: nodes take no version below one that they took before, and a
    manifest may be deleted, or come back with an older checkout.
    VerificationError `signature-threshold` when the manifest there was signed for production.
    """
    terms = Terms(
        project=name,
        valid_days=VALID_DAYS,
        environments={item: Expected() for item in environments},
        data_sets={item: Expected() for item in data_sets},
        development=True,
    )
    with Tree(project) as tree:
        seen = _seen(terms, private_key, _nodes(tree))
        known = _UNCHANGED.get(project)
        at = now()
        if known is not None and known.seen == seen and at.wall_ms < known.renew_ms:
            return Resigned(signed=False, first=False, version=known.version, changed=(), project=known.project)
        before, is_mine = _before(tree, private_key, project)
        manifest = make_manifest(read_folder(tree), terms, before, at, project.name)
        least = _versions(versions).get(manifest.project, 0)
        manifest = replace(manifest, version=max(manifest.version, least + 1))
        is_current = before is not None and before.version >= least and at.wall_ms < _renew_ms(before)
        if before is not None and is_mine and is_current and same_content(before, manifest):
            _remember(project, tree, terms, private_key, before)
            return Resigned(signed=False, first=False, version=before.version, changed=(), project=before.project)
        if versions is not None:
            known_versions = {**_versions(versions), manifest.project: manifest.version}
            replace_file(versions, strictjson.canonical(known_versions))
        write_manifest(project, manifest, [private_key])
        _remember(project, tree, terms, private_key, manifest)
    return Resigned(True, before is None, manifest.version, changed_files(before, manifest), manifest.project)


class DevelopmentSigner:
    """Signs one project for its own user, as often as it is asked."""

    def __init__(self, project: Path, home: Path, data_sets: Sequence[str] = ()) -> None:
        self.project, self.home = project, home
        self.made_key = not _folder(home).is_dir()
        self._key, _ = development_signer(home)
        self._data_sets = tuple(data_sets)
        self._name: str | None = None

    @property
    def trust_root(self) -> Path:
        return development_root_path(self.home)

    def sign(self) -> Resigned:
        """Cheap when nothing changed.  The project keeps the name that it had at first: the policy names it too."""
        signed = resign_if_changed(
            self.project,
            self._key,
            name=self._name,
            environments=["default"],
            data_sets=self._data_sets,
            versions=_folder(self.home) / VERSIONS,
        )
        self._name = signed.project
        return signed

    def lines(self, signed: Resigned) -> list[str]:
        """What to tell the person."""
        lines = [f"made a development key in {_folder(self.home)}"] if self.made_key else []
        self.made_key = False
        if signed.signed and signed.first:
            lines.append(f"signed {signed.project}, version {signed.version}, {len(signed.changed)} files")
        elif signed.signed:
            lines.append(f"re-signed, {_counted(signed.changed)}")
        return lines


@dataclass(frozen=True)
class DevelopmentProject:
    """A signed project: its name, its trust root's file, and what to tell the person, line by line."""

    name: str
    trust_root: Path
    lines: tuple[str, ...]


def development_project(project: Path, *, home: Path | None = None, name: str | None = None) -> DevelopmentProject:
    """Makes key and root if there are none, signs if something changed.  Call it again after an edit."""
    home = home or Path.home()
    is_new = not _folder(home).is_dir()
    private_key, _ = development_signer(home)
    resigned = resign_if_changed(project, private_key, name=name)
    lines = [f"made a development key in {_folder(home)}"] if is_new else []
    if resigned.signed and resigned.first:
        lines.append(f"signed {resigned.project} version {resigned.version}, {len(resigned.changed)} files")
    elif resigned.signed:
        lines.append(f"re-signed, {_counted(resigned.changed)}")
    return DevelopmentProject(resigned.project, development_root_path(home), tuple(lines))


def _counted(changed: tuple[str, ...]) -> str:
    if not changed:
        return "no file changed"
    shown = ", ".join(changed[:5]) + (" …" if len(changed) > 5 else "")
    return f"{len(changed)} file{'s' if len(changed) > 1 else ''} changed: {shown}"


def _versions(path: Path | None) -> dict[str, int]:
    if path is None or not path.exists():
        return {}
    with storage_errors(f"read {path}"):
        data = path.read_bytes()
    value = strictjson.parse(data, max_bytes=1 << 20, what=str(path))
    return {key: item for key, item in value.items() if isinstance(item, int)} if isinstance(value, dict) else {}


@dataclass(frozen=True)
class _Known:
    seen: str
    version: int
    project: str
    renew_ms: int


_UNCHANGED: dict[Path, _Known] = {}


def _remember(project: Path, tree: Tree, terms: Terms, private_key: PrivateKey, manifest: Manifest) -> None:
    nodes = _nodes(tree)
    if is_fresh(nodes):
        _UNCHANGED.pop(project, None)
        return
    _UNCHANGED[project] = _Known(_seen(terms, private_key, nodes), manifest.version, manifest.project, _renew_ms(manifest))


def _nodes(tree: Tree) -> list[Node]:
    """The project and its manifest: somebody may remove or replace that one too."""
    ignored = ignored_patterns(tree)
    manifest = tree.walk(IgnoreRules(("/*", f"!/{MANIFEST_NAME}")))
    return project_nodes(tree, ignored) + manifest


def _seen(terms: Terms, private_key: PrivateKey, nodes: list[Node]) -> str:
    return repr(terms) + public_key_of(private_key).keyid + identity(nodes)


def _renew_ms(manifest: Manifest) -> int:
    return manifest.expires_ms - VALID_DAYS * DAY_MS // 3


def _before(tree: Tree, private_key: PrivateKey, project: Path) -> tuple[Manifest | None, bool]:
    """The manifest there, and whether this key signed it; refuses one that was signed for production."""
    try:
        found = read_unverified(tree)
    except FormatError as exc:
        raise _not_mine(project, f"the manifest there cannot be read ({exc.message})") from exc
    if found is None:
        return None, False
    envelope, manifest = found
    if not manifest.development:
        raise _not_mine(project, f"version {manifest.version} of {manifest.project} there was signed for production")
    try:
        verify_envelope(envelope, [public_key_of(private_key)], 1)
    except VerificationError:  # of another user's development key: theirs to say what was signed, ours to sign anew
        return manifest, False
    return manifest, True


def _not_mine(project: Path, cause: str) -> VerificationError:
    return VerificationError(
        f"cannot sign {project} for development: {cause}",
        code="signature-threshold",
        hint="Run it with --policy and its trust root, or work on a copy without scaleout.manifest.json.",
    )


def _folder(home: Path) -> Path:
    return home / ".config" / "scaleoutd" / "development"


def _make(folder: Path) -> None:
    """Made beside its place and renamed: of two programs one wins, and both use what is there then."""
    parent = folder.parent
    with storage_errors(f"make the development key in {folder}"):
        parent.mkdir(parents=True, exist_ok=True)
        fresh = make_private_folder(parent / f".development-{secrets.token_hex(8)}")
        try:
            private_key = new_private_key("ed25519")
            write_key_pair(fresh, KEY_NAME, private_key)
            (fresh / "root").mkdir(mode=0o700)
            envelope = sign_trust_root(_root(private_key, now()), [private_key])
            replace_file(fresh / "root" / "1.json", serialise_envelope(envelope))
            fresh.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
        finally:
            shutil.rmtree(fresh, ignore_errors=True)


def _root(private_key: PrivateKey, at: Now) -> TrustRoot:
    key = public_key_of(private_key)
    return TrustRoot(
        type="scaleoutd-trust-root-v1",
        version=1,
        expires_ms=at.wall_ms + ROOT_DAYS * DAY_MS,
        keys={key.keyid: TrustedKey(key.pem, name="development key of this user")},
        roles={"root": Role((key.keyid,), 1), "development": Role((key.keyid,), 1)},
        development=True,
    )
