# SPDX-License-Identifier: Apache-2.0
"""From an environment of the policy to what a step must be shown, and the proof of environments and data sets.

Rules (design-review F1):
  1. Nothing is executed to find out: an interpreter's prefix is read from symbolic links and pyvenv.cfg (PEP 405).
  2. A prefix is shown only if it looks like one (lib/python*, pyvenv.cfg, conda-meta); else only the file itself.  A
     python in a home folder's bin never shows the home folder.
  3. With a digest: every file, link and mode counts, byte code too (it runs), and nobody but root and the runner may be able
     to write any part or any folder above.  Digests are remembered by stat identity for the life of this process.
  4. The system's own folders are shown, not hashed: the distribution's packages have their own digests.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from scaleoutd.core import strictjson
from scaleoutd.core.plan import Bind
from scaleoutd.core.policy import DataSetRule, EnvironmentRule
from scaleoutd.durable import storage_errors
from scaleoutd.errors import VerificationError
from scaleoutd.runner.hashing import digest_file
from scaleoutd.runner.tree import Node, Tree, identity, is_fresh

MAX_HOPS = 16
SYSTEM_FOLDERS = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64")
SYSTEM_FILES = ("/etc/ld.so.cache", "/etc/alternatives", "/etc/localtime")
_NEVER_A_PREFIX = frozenset(map(Path, ("/", "/home", "/root", "/etc", "/var", "/tmp", "/run", "/opt", "/srv", "/mnt")))  # noqa: S108

_DIGESTS: OrderedDict[str, str] = OrderedDict()
_DIGESTS_MAX = 64


@dataclass(frozen=True)
class ResolvedEnvironment:
    """`python` as it must be called; `search_path` for PATH, in order; `sha256` when it was proven."""

    python: str
    binds: tuple[Bind, ...]
    search_path: tuple[str, ...]
    is_venv: bool
    sha256: str | None = None


def resolve_environment(rule: EnvironmentRule) -> ResolvedEnvironment:
    """VerificationError `environment-mismatch` when it is not there or not as its digest says."""
    python = Path(rule.python)
    hops = _hops(python)
    prefixes = _prefixes(hops)
    binds: dict[str, Bind] = {}
    for folder in SYSTEM_FOLDERS:
        if os.path.isdir(folder):
            binds[folder] = Bind(os.path.realpath(folder), folder, executable=True)
    for file in SYSTEM_FILES:
        if os.path.exists(file):
            binds[file] = Bind(os.path.realpath(file), file)
    for extra in (*map(Path, rule.binds), *prefixes):
        if not extra.exists():
            raise _refuse(rule, f"expected {extra}, found nothing there")
        if not _is_covered(extra, binds):
            binds[str(extra)] = Bind(str(extra), str(extra), executable=True)
    sha256 = environment_digest(rule) if rule.digest is not None else None
    if rule.digest is not None and sha256 != rule.digest:
        raise _refuse(rule, f"expected digest {rule.digest}, found {sha256}")
    is_venv = _venv_of(python) is not None
    search_path = tuple(dict.fromkeys(str(hop.parent) for hop in (hops[:1] if is_venv else hops)))
    return ResolvedEnvironment(str(python), tuple(binds.values()), search_path, is_venv, sha256)


def link_interpreter(folder: Path, python: str) -> None:
    """`python` and `python3` in `folder`/bin, for a step without a view of its own (planner.py has them in the view)."""
    with storage_errors(f"link the interpreter in {folder}"):
        (folder / "bin").mkdir(mode=0o755)
        (folder / "bin").chmod(0o755)
        for name in ("python", "python3"):
            (folder / "bin" / name).symlink_to(python)


def environment_digest(rule: EnvironmentRule) -> str:
    """SHA-256 of everything of the environment that is not the system's own (see the module's rules)."""
    roots = _digest_roots(rule)
    listing = []
    for root in roots:
        _check_ancestors(rule, root)
        if root.is_dir():
            listing.append([str(root), _tree_digest(rule, root)])
        else:
            with Tree(root.parent) as tree, storage_errors(f"read {root}"):
                listing.append([str(root), digest_file(tree, root.name).sha256])
    return hashlib.sha256(strictjson.canonical(listing)).hexdigest()


def check_data_set(name: str, rule: DataSetRule) -> str | None:
    """The data set's digest in its mode, None for mode none; VerificationError `data-set-mismatch`."""
    path = Path(rule.path)
    if not path.exists():
        raise _data_mismatch(name, rule, f"expected {path}, found nothing there")
    if rule.mode == "none":
        return None
    folder, only = (path, None) if path.is_dir() else (path.parent, path.name)
    with Tree(folder) as tree, storage_errors(f"read the data set {path}"):
        nodes = [node for node in tree.walk() if only is None or node.path == only]
        key = f"data {rule.mode} {path} {identity(nodes)}"
        found = _DIGESTS.get(key) or _remember(key, _listing_digest(tree, nodes, full=rule.mode == "full"), nodes)
    if rule.digest is not None and found != rule.digest:
        raise _data_mismatch(name, rule, f"expected digest {rule.digest}, found {found}")
    return found


def _hops(python: Path) -> list[Path]:
    """The interpreter and every file that its symbolic links lead through, the last one real."""
    hops = [python]
    while hops[-1].is_symlink():
        if len(hops) > MAX_HOPS:
            raise _refuse_path(python, f"more than {MAX_HOPS} symbolic links")
        hops.append(Path(os.path.normpath(hops[-1].parent / os.readlink(hops[-1]))))
    real = hops[-1]
    if not real.is_file():
        raise _refuse_path(python, "expected an interpreter, found no file" + (f" at {real}" if real != python else ""))
    if not os.access(real, os.X_OK):
        raise _refuse_path(python, f"expected an executable file, found mode {stat.S_IMODE(real.stat().st_mode):04o}")
    with storage_errors(f"read {real}"), open(real, "rb") as file:
        # pyenv and its like put scripts of the name python first on PATH; what they start is chosen elsewhere.
        if file.read(4) != b"\x7fELF":
            raise _refuse_path(python, "expected an interpreter, found a script; name the interpreter that it starts")
    return hops


def _prefixes(hops: Sequence[Path]) -> list[Path]:
    """What must be shown so that each hop can be followed and its libraries found, outermost first."""
    found: dict[Path, None] = {}
    for hop in hops:
        prefix = hop.parent.parent
        found[prefix if hop.parent.name == "bin" and _is_prefix(prefix) else hop] = None
        venv = _venv_of(hop)
        if venv is not None:
            base = Path(venv)
            if base.name == "bin" and _is_prefix(base.parent):
                found[base.parent] = None
    # A real path may differ from the written one where a folder above is a link.
    for path in list(found):
        found[Path(os.path.realpath(path))] = None
    return sorted(found)


def _is_prefix(path: Path) -> bool:
    if path in _NEVER_A_PREFIX:
        return False
    return (path / "pyvenv.cfg").is_file() or (path / "conda-meta").is_dir() or any(path.glob("lib/python*"))


def _venv_of(python: Path) -> str | None:
    """`home` of the virtual environment that an interpreter belongs to."""
    config = python.parent.parent / "pyvenv.cfg"
    if not config.is_file():
        return None
    with storage_errors(f"read {config}"):
        for line in config.read_text("utf-8", "replace").splitlines():
            key, _, value = line.partition("=")
            if key.strip().lower() == "home":
                return value.strip()
    return None


def _is_covered(path: Path, binds: dict[str, Bind]) -> bool:
    return any(path == Path(target) or Path(target) in path.parents for target in binds)


def _digest_roots(rule: EnvironmentRule) -> list[Path]:
    hops = _hops(Path(rule.python))
    system = [Path(folder) for folder in SYSTEM_FOLDERS]
    own = (*_prefixes(hops), *map(Path, rule.binds))
    roots = {path for path in own if not any(path == folder or folder in path.parents for folder in system)}
    if not roots:
        # The system's python: the interpreter, and where its packages are installed.
        real = hops[-1]
        roots = {real, *Path("/usr/lib").glob("python3*"), *Path("/usr/local/lib").glob("python3*")}
    return sorted(root for root in roots if not any(other in root.parents for other in roots))


def _tree_digest(rule: EnvironmentRule, root: Path) -> str:
    with Tree(root) as tree, storage_errors(f"read the environment {root}"):
        nodes = tree.walk(folders=True)
        for node in nodes:
            _check_writer(rule, root / node.path, node.owner, node.mode)
        key = f"environment {root} {identity(nodes)}"
        return _DIGESTS.get(key) or _remember(key, _listing_digest(tree, nodes, full=True), nodes)


def _listing_digest(tree: Tree, nodes: Sequence[Node], *, full: bool) -> str:
    rows: list[list[strictjson.Json]] = []
    for node in nodes:
        path = node.path.encode("utf-8", "surrogateescape").hex() if not node.path.isprintable() else node.path
        if stat.S_ISREG(node.mode):
            content = digest_file(tree, node.path).sha256 if full else ""
            rows.append([path, "x" if node.mode & 0o111 else "f", node.size_bytes, content])
        elif stat.S_ISLNK(node.mode):
            rows.append([path, "l", 0, tree.read_link(node.path)])
        else:
            rows.append([path, "d" if stat.S_ISDIR(node.mode) else "o", 0, ""])
    return hashlib.sha256(strictjson.canonical(rows)).hexdigest()


def _check_ancestors(rule: EnvironmentRule, root: Path) -> None:
    for path in (root, *root.parents):
        found = os.stat(path)
        # Anybody may add to a sticky folder, but not replace what is in it.
        if not found.st_mode & stat.S_ISVTX:
            _check_writer(rule, path, found.st_uid, found.st_mode)


def _check_writer(rule: EnvironmentRule, path: Path, owner: int, mode: int) -> None:
    if stat.S_ISLNK(mode):
        mode = 0
    if owner not in (0, os.geteuid()) or mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise _refuse(rule, f"expected that only root can write {path}, found owner {owner} and mode {stat.S_IMODE(mode):04o}")


def _remember(key: str, digest: str, nodes: list[Node]) -> str:
    if not is_fresh(nodes):
        _DIGESTS[key] = digest
    while len(_DIGESTS) > _DIGESTS_MAX:
        _DIGESTS.popitem(last=False)
    return digest


def _refuse(rule: EnvironmentRule, cause: str) -> VerificationError:
    return _refuse_path(Path(rule.python), cause)


def _refuse_path(python: Path, cause: str) -> VerificationError:
    return VerificationError(
        f"cannot use the environment of {python}: {cause}",
        code="environment-mismatch",
        hint="Put the environment back as it was, or correct environments: in the policy; `scaleoutctl env check` looks again.",
    )


def _data_mismatch(name: str, rule: DataSetRule, cause: str) -> VerificationError:
    return VerificationError(
        f"cannot use data set {name} at {rule.path}: {cause}",
        code="data-set-mismatch",
        hint="Put the data back, or correct data_sets: in the policy; `scaleoutctl env check` looks again.",
    )
