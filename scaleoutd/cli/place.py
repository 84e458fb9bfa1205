# SPDX-License-Identifier: Apache-2.0
"""Where an installed node keeps its things, below a root folder: "/" on the node, another one for an image or a test.

etc/scaleoutd/{scaleoutd.yaml,scaleoutd.d,policy.yaml,policy.lock,trust,identity}
etc/systemd/system/scaleoutd*.d/50-policy.conf
var/lib/scaleoutd/{agent,runner,audit,scratch,project}
run/scaleoutd/ROOM.control
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import click

from scaleoutd.errors import ConfigError

ROOT_OPTION = click.option(
    "--root",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    default=Path("/"),
    metavar="DIR",
    help="another root, for an image [/]",
)
JSON_OPTION = click.option("--json", "as_json", is_flag=True, help="one JSON object on standard output")


@dataclass(frozen=True)
class Place:
    """`root` is absolute."""

    root: Path = Path("/")

    @classmethod
    def of(cls, root: Path) -> Place:
        return cls(root.absolute())

    @property
    def is_this_host(self) -> bool:
        return self.root == Path("/")

    @property
    def etc(self) -> Path:
        return self.root / "etc/scaleoutd"

    @property
    def identity(self) -> Path:
        return self.etc / "identity"

    @property
    def policy(self) -> Path:
        return self.etc / "policy.yaml"

    @property
    def lock(self) -> Path:
        return self.etc / "policy.lock"

    @property
    def units(self) -> Path:
        return self.root / "etc/systemd/system"

    @property
    def state(self) -> Path:
        return self.root / "var/lib/scaleoutd"

    @property
    def project(self) -> Path:
        return self.state / "project"

    def control(self, room: str) -> Path:
        return self.root / f"run/scaleoutd/{room}.control"

    def inside(self, path: str) -> Path:
        """The path `path` of the node, as it is reached from here."""
        return self.root / path.lstrip("/")


def must_be_root(place: Place, act: str) -> None:
    """ConfigError when this user cannot write below `place`; in a folder of their own anybody may."""
    if place.is_this_host and os.geteuid() != 0:
        raise ConfigError(f"cannot {act}: only root may", hint="Use sudo.")
