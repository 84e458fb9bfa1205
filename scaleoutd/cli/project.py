# SPDX-License-Identifier: Apache-2.0
"""`scaleoutctl project install | rollback | show`: the project that an installed node runs.

    /var/lib/scaleoutd/project/releases/NNNN-DIGEST/   one version each: NNNN of the manifest, DIGEST of the manifest
    /var/lib/scaleoutd/project/current                 a link to the one in force, swapped by one rename
    /var/lib/scaleoutd/project/previous                a link to the one before

Rules:
  1. A project is proven against the trust root and the policy's name for it while it is copied, through one buffer
     (runner/store.py): what was proven is what is installed.  The runner proves it again before every run.
  2. Root's, and readable by the runner's group alone.
  3. A version below one that ran on this node is refused by the runner for good: so it is here.  What shall come back is signed
     again with a higher version.
"""

from __future__ import annotations

import grp
import json
import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from scaleoutd.cli.onrecord import note
from scaleoutd.cli.place import JSON_OPTION, ROOT_OPTION, Place, must_be_root
from scaleoutd.cli.policycommand import read_lock, read_yaml
from scaleoutd.cli.signing import locate_project, now, read_unverified
from scaleoutd.cli.terminal import escape, say, warn
from scaleoutd.core.clock import Floors, utc_text
from scaleoutd.core.manifest import MANIFEST_NAME
from scaleoutd.core.policy import Policy
from scaleoutd.core.trust import RootPin
from scaleoutd.durable import replace_file, storage_errors, sync_folder
from scaleoutd.errors import ConfigError, ScaleoutError
from scaleoutd.runner.room import read_floors
from scaleoutd.runner.rootfile import read_trust_root
from scaleoutd.runner.store import discard, take_snapshot
from scaleoutd.runner.tree import Tree
from scaleoutd.runner.verify import Proven, check_project, prove, read_envelope, refuse

KEPT = 3  # releases; current and previous always
GROUP = "scaleoutd-runner"
IN_FORCE = "/var/lib/scaleoutd/project/current"
FOLDER_MODE = 0o750
WOULD_CHANGE = 1


@dataclass(frozen=True)
class Release:
    path: Path
    version: int
    sha256: str
    project: str
    expires_ms: int


@click.group("project")
def project() -> None:
    """The project that this node runs.

    \b
    Example:
      sudo scaleoutctl project install my-project
    """


@project.command("install")
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--check", is_flag=True, help="change nothing; exit status 1 when there is something to change")
@ROOT_OPTION
@JSON_OPTION
def project_install(folder: Path, check: bool, root: Path, as_json: bool) -> int:
    """Prove the signed project in FOLDER and install it, in one step; the version before is kept.

    A run in progress ends with the version it began with; the next one takes the new one.

    \b
    Example:
      sudo scaleoutctl project install my-project
    """
    place = Place.of(root)
    proven = _prove(place, locate_project(folder))
    manifest = proven.manifest.manifest
    release = _release_of(proven, place.project / "releases" / f"{manifest.version:04d}-{proven.manifest.sha256[:16]}")
    changed = _target(place, "current") != release.path.name
    if changed and check:
        refuse(check_project(proven))
    _warn_of_another_path(place)
    if changed and not check:
        must_be_root(place, "install the project")
        _copy(place, proven, release)
        _swap(place, release.path.name)
        _prune(place)
        note(place, "project-install", [release.project, str(release.version), release.sha256])
    _tell(release, changed, check, as_json)
    return WOULD_CHANGE if check and changed else 0


@project.command("rollback")
@ROOT_OPTION
@JSON_OPTION
def project_rollback(root: Path, as_json: bool) -> None:
    """Go back to the version before.  Refused when a newer one has run here: then sign the old files with a higher version.

    \b
    Example:
      sudo scaleoutctl project rollback
    """
    place = Place.of(root)
    name = _target(place, "previous")
    if not name:
        raise ConfigError("cannot roll back: no version before is kept", code="config-missing")
    must_be_root(place, "roll back the project")
    proven = _prove(place, place.project / "releases" / name)
    refuse(check_project(proven))
    _swap(place, name)
    release = _release_of(proven, place.project / "releases" / name)
    note(place, "project-rollback", [release.project, str(release.version), release.sha256])
    _tell(release, True, False, as_json)


@project.command("show")
@ROOT_OPTION
@JSON_OPTION
def project_show(root: Path, as_json: bool) -> None:
    """List the installed versions, and which one is in force.  Does not verify.

    \b
    Example:
      sudo scaleoutctl project show
    """
    place = Place.of(root)
    rows = installed(place)
    if as_json:
        click.echo(json.dumps({"releases": rows}, indent=2))
        return
    if not rows:
        say("no project is installed: `scaleoutctl project install FOLDER`")
    for row in rows:
        until = utc_text(row["expires_ms"])
        click.echo(escape(f"{row['state']:<9} {row['project']} version {row['version']}, until {until}  {row['name']}"))


def installed(place: Place) -> list[dict[str, Any]]:
    """Releases by name, as their own manifests say; StorageError when this user may not look."""
    current, previous, rows = _target(place, "current"), _target(place, "previous"), []
    folder = place.project / "releases"
    with storage_errors(f"read {folder}"):
        names = sorted(path.name for path in folder.iterdir() if not path.name.startswith(".")) if folder.exists() else []
    for name in names:
        with Tree(folder / name) as tree:
            found = read_unverified(tree)
        if found is not None:
            state = "current" if name == current else "previous" if name == previous else "kept"
            facts = {"project": found[1].project, "version": found[1].version, "expires_ms": found[1].expires_ms}
            rows.append({"name": name, "state": state, **facts})
    return rows


def _prove(place: Place, folder: Path) -> Proven:
    """The envelope in `folder`; its files are proven where they are read."""
    policy = _policy(place)
    at = now()
    floors_file = place.state / "runner/floors.json"
    floors = read_floors(floors_file) if os.access(floors_file, os.R_OK) else Floors()
    trust_root = read_trust_root(place.inside(policy.trust_root), at, pin=RootPin.of(floors))
    try:
        return prove(folder, trust_root, policy, floors, at)
    except ScaleoutError as exc:
        if exc.code == "manifest-replayed":
            exc.hint = "Sign these files again, which gives them a higher version: `scaleoutctl sign`."
        raise


def _policy(place: Place) -> Policy:
    """The one in force, or the one that will be."""
    return read_lock(place) if place.lock.exists() else read_yaml(place.policy)


def _release_of(proven: Proven, path: Path) -> Release:
    manifest = proven.manifest.manifest
    return Release(path, manifest.version, proven.manifest.sha256, manifest.project, manifest.expires_ms)


def _copy(place: Place, proven: Proven, release: Release) -> None:
    """The proven files and their envelope under the release's name; a crash leaves a name that nothing reads."""
    releases = release.path.parent
    _make_folders(place)
    if release.path.exists():
        installed_before = Proven(proven.manifest, proven.envelope_sha256, release.path)
        if read_envelope(release.path) == read_envelope(proven.project_path) and not check_project(installed_before):
            return
        discard(release.path)
    staging = releases / f".{secrets.token_hex(8)}"
    try:
        copy = take_snapshot(proven, staging).path
        with storage_errors(f"write {copy}"):
            copy.chmod(0o755)
            replace_file(copy / MANIFEST_NAME, read_envelope(proven.project_path), mode=0o444)
            os.sync()  # thousands of small files: one barrier for all of them
            copy.rename(release.path)
            sync_folder(releases)
    finally:
        discard(staging)


def _make_folders(place: Place) -> None:
    group = _group()
    for folder in (place.project, place.project / "releases"):
        with storage_errors(f"make {folder}"):
            folder.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
            folder.chmod(FOLDER_MODE)
            if group is not None and os.geteuid() == 0:
                os.chown(folder, 0, group)


def _group() -> int | None:
    try:
        return grp.getgrnam(GROUP).gr_gid
    except KeyError:
        return None


def _swap(place: Place, name: str) -> None:
    """`current` leads to `name` from one instant to the next; what it led to before is `previous`."""
    before = _target(place, "current")
    if before and before != name:
        _link(place, "previous", before)
    _link(place, "current", name)


def _link(place: Place, link: str, name: str) -> None:
    new = place.project / f".{link}.new"
    with storage_errors(f"link {place.project / link}"):
        new.unlink(missing_ok=True)
        new.symlink_to(f"releases/{name}")
        new.rename(place.project / link)
        sync_folder(place.project)


def _target(place: Place, link: str) -> str:
    path = place.project / link
    with storage_errors(f"read {path}"):
        return path.readlink().name if path.is_symlink() else ""


def _prune(place: Place) -> None:
    """The newest stay, and those that are linked."""
    linked = {_target(place, "current"), _target(place, "previous")}
    names = sorted((path.name for path in (place.project / "releases").iterdir()), reverse=True)
    for name in names[KEPT:]:
        if name not in linked:
            discard(place.project / "releases" / name)


def _warn_of_another_path(place: Place) -> None:
    path = _policy(place).project.path
    if path != IN_FORCE:
        warn(f"the policy runs the project at {path}, not what is installed here; write project.path: {IN_FORCE}")


def _tell(release: Release, changed: bool, check: bool, as_json: bool) -> None:
    if as_json:
        told = {"project": release.project, "version": release.version, "manifest_sha256": release.sha256}
        click.echo(json.dumps({"changed": changed, "written": changed and not check, **told, "release": release.path.name}))
        return
    verb = "unchanged" if not changed else "would be installed" if check else "in force"
    say(
        escape(f"{release.project} version {release.version} ({release.path.name}), until {utc_text(release.expires_ms)}: {verb}")
    )
