# SPDX-License-Identifier: Apache-2.0
"""`scaleoutctl init`: a small project that needs nothing but Python, as a start or to try a node with.

A logistic regression in plain Python on data made up with a known truth, so that a round can be judged: the loss falls and
the weights come nearer to the truth.
"""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path

import click

from scaleoutd.durable import storage_errors
from scaleoutd.errors import ConfigError

# File names of the package's template folder → names in the project.
FILES = {
    "scaleout.yaml": "scaleout.yaml",
    "scaleoutignore": ".scaleoutignore",
    "model.py": "model.py",
    "data.py": "data.py",
    "train.py": "train.py",
    "validate.py": "validate.py",
    "build.py": "build.py",
}


@click.command("init")
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path), default=Path())
@click.option("--json", "as_json", is_flag=True, help="one JSON object on standard output")
def init(folder: Path, as_json: bool) -> None:
    """Make a small project in FOLDER.

    \b
    Example:
      scaleoutctl init my-project
    """
    write_project(folder)
    if as_json:
        click.echo(json.dumps({"folder": str(folder.absolute()), "files": sorted(FILES.values())}))
        return
    click.echo(f"made a project in {folder}: {', '.join(sorted(FILES.values()))}")
    click.echo("try it there: scaleoutctl build && scaleoutctl run train --in seed.npz")
    click.echo(f"and with a combiner on this machine, from here: scaleoutctl combiner start --project {folder} --rounds 3")


def write_project(folder: Path) -> tuple[Path, ...]:
    """Writes the template's files; ConfigError when one of them is there already."""
    taken = sorted(name for name in FILES.values() if (folder / name).exists())
    if taken:
        raise ConfigError(f"cannot make a project in {folder}: {taken[0]} is there already", hint="Name an empty folder.")
    template = resources.files("scaleoutd.cli") / "template"
    written = []
    with storage_errors(f"make a project in {folder}"):
        folder.mkdir(parents=True, exist_ok=True)
        for source, name in FILES.items():
            path = folder / name
            path.write_bytes((template / source).read_bytes())
            path.chmod(0o644)
            written.append(path)
    return tuple(written)
