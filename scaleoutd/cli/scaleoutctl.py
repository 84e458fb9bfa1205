# SPDX-License-Identifier: Apache-2.0
"""`scaleoutctl`: keys, signatures, single steps, the trail, the demo."""

from __future__ import annotations

from typing import NoReturn

import click

from scaleoutd import __version__
from scaleoutd.cli.audit import audit
from scaleoutd.cli.demo import demo
from scaleoutd.cli.doctor import doctor
from scaleoutd.cli.explain import explain
from scaleoutd.cli.init import init
from scaleoutd.cli.keygen import keygen
from scaleoutd.cli.main import run_command
from scaleoutd.cli.run import run
from scaleoutd.cli.sign import sign, verify
from scaleoutd.cli.trust import trust


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(__version__, prog_name="scaleoutctl")
def scaleoutctl() -> None:
    """Keys, signatures, single steps and the audit trail of a scaleoutd node."""


for command in (audit, demo, doctor, explain, init, keygen, run, sign, trust, verify):
    scaleoutctl.add_command(command)


def main() -> NoReturn:
    run_command(scaleoutctl)


if __name__ == "__main__":
    main()
