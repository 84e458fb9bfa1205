#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""What of this tree goes where on an installed node: the one list that the deb, the rpm and the booted tests use.

    python3 packaging/layout.py                                      prints the list
    python3 packaging/layout.py --into FOLDER [--libraries FOLDER]   copies it below FOLDER as an installed node has it
    python3 packaging/layout.py --folders                            what a package must not own but remove and purge care for

Everything belongs to root.  Rules:
  1. Nothing here is byte code: it is made on the node after the installation, so that packages are the same bits whenever they
     are built, and a file that a checker finds changed was changed.
  2. Nothing here is configuration of a site: `scaleoutctl config init` writes that.  The one conffile is needrestart's.
  3. `--libraries` is the unpacked lock requirements/site.txt (packaging/libraries.py); without it the folder `site` is left out.

Standard library only, for any Python 3.11: it runs before anything is installed.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

TREE = Path(__file__).resolve().parent.parent
HOME = "usr/lib/scaleoutd"  # our package lies in HOME/scaleoutd, the private libraries in HOME/site
LIBRARIES = f"{HOME}/site"
CONFFILES = ("etc/needrestart/conf.d/scaleoutd.conf",)
DOCS = "usr/share/doc/scaleoutd"
DOCUMENTS = ("README.md", "SECURITY.md", "CHANGELOG.md", "CONTRIBUTING.md")

# What the package's own files make: users and the trail outlive a purge, the rest does not.
STATE = ("etc/scaleoutd", "var/lib/scaleoutd", "run/scaleoutd")

PROGRAM, DATA = 0o755, 0o644


@dataclass(frozen=True)
class Item:
    """A file of the node: `target` below its root, a copy of `source` with `mode`, owned by root."""

    target: str
    source: Path
    mode: int = DATA


def items(tree: Path = TREE) -> list[Item]:
    """Every file but the private libraries and what is generated from others (man pages are compressed by the package)."""
    found = [*package(tree), *programs(tree), *units(tree), *manual(tree), *documents(tree)]
    doubled = {item.target for item in found if sum(other.target == item.target for other in found) > 1}
    if doubled:
        raise SystemExit(f"layout: two sources for {', '.join(sorted(doubled))}")
    return sorted(found, key=lambda item: item.target)


def package(tree: Path) -> Iterator[Item]:
    """The Python package with its data, without byte code."""
    for path in files_below(tree / "scaleoutd"):
        yield Item(f"{HOME}/{path.relative_to(tree)}", path)


def programs(tree: Path) -> Iterator[Item]:
    start = tree / "packaging/start"
    yield Item(f"{HOME}/room", start / "room", PROGRAM)
    yield Item(f"{HOME}/renew", start / "renew", PROGRAM)
    for path in files_below(tree / "packaging/view"):  # of the step's /etc, and places for mounts in its /sys
        yield Item(f"{HOME}/view/{path.relative_to(tree / 'packaging/view')}", path)
    yield Item("usr/bin/scaleoutd", start / "scaleoutd", PROGRAM)
    yield Item("usr/bin/scaleoutctl", start / "scaleoutctl", PROGRAM)


def units(tree: Path) -> Iterator[Item]:
    """systemd/: units lie flat in it, what other programs of systemd read in a folder named as theirs."""
    for path in files_below(tree / "systemd"):
        relative = path.relative_to(tree / "systemd")
        if path.suffix == ".preset":
            yield Item(f"usr/lib/systemd/system-preset/{path.name}", path)
        elif relative.parts[0] in ("sysusers.d", "tmpfiles.d"):
            yield Item(f"usr/lib/{relative}", path)
        elif path.suffix != ".md":
            yield Item(f"usr/lib/systemd/system/{relative}", path)
    yield Item(CONFFILES[0], tree / "packaging/needrestart.conf")


def manual(tree: Path) -> Iterator[Item]:
    for path in sorted((tree / "docs/man").glob("*.[1-8]")):
        yield Item(f"usr/share/man/man{path.suffix[1:]}/{path.name}", path)


def documents(tree: Path) -> Iterator[Item]:
    """In folders as in the tree, so that their links lead somewhere."""
    for name in DOCUMENTS:
        yield Item(f"{DOCS}/{name}", tree / name)
    for path in (*sorted((tree / "docs").glob("*.md")), *files_below(tree / "docs/adr"), *files_below(tree / "docs/images")):
        yield Item(f"{DOCS}/{path.relative_to(tree)}", path)
    yield Item(f"{DOCS}/policy/policy.example.yaml", tree / "policy/policy.example.yaml")
    for path in files_below(tree / "policy"):
        if path.name != "policy.example.yaml" and path.suffix != ".py":
            yield Item(f"usr/share/scaleoutd/{path.relative_to(tree / 'policy')}", path)


def files_below(folder: Path) -> list[Path]:
    """Regular files without byte code, sorted; SystemExit for anything that is neither file nor folder."""
    found = []
    for path in sorted(folder.rglob("*")):
        if "__pycache__" in path.parts or path.suffix == ".pyc" or (path.is_dir() and not path.is_symlink()):
            continue
        if path.is_symlink() or not path.is_file():
            raise SystemExit(f"layout: {path} is no regular file")
        found.append(path)
    return found


def copy(into: Path, libraries: Path | None = None, tree: Path = TREE) -> None:
    """Makes an installed node's files below `into`; modes do not depend on the umask."""
    for item in items(tree):
        place(item, into)
    if libraries is not None:
        for path in files_below(libraries):
            place(Item(f"{LIBRARIES}/{path.relative_to(libraries)}", path), into)


def place(item: Item, into: Path) -> None:
    target = into / item.target
    make_folders(target.parent, into)
    shutil.copyfile(item.source, target)
    target.chmod(item.mode)


def make_folders(folder: Path, root: Path) -> None:
    if folder != root and not folder.is_dir():
        make_folders(folder.parent, root)
        folder.mkdir()
        folder.chmod(0o755)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--into", type=Path, help="copy the files below this folder")
    parser.add_argument("--libraries", type=Path, help="folder that becomes /usr/lib/scaleoutd/site")
    parser.add_argument("--folders", action="store_true", help="print the folders that the node makes itself")
    given = parser.parse_args()
    if given.folders:
        print(*(f"/{folder}" for folder in STATE), sep="\n")
    elif given.into:
        given.into.mkdir(parents=True, exist_ok=True)
        copy(given.into, given.libraries)
    else:
        for item in items():
            print(f"{item.mode:o} /{item.target}  <- {item.source.relative_to(TREE)}")


if __name__ == "__main__":
    main()
