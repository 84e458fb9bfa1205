# SPDX-License-Identifier: Apache-2.0
"""How a command ends: every error becomes "what: cause", its code, the next step, and an exit status of sysexits(3).

The only place that turns errors into exit statuses.
"""

from __future__ import annotations

import sys
from typing import NoReturn

import click

from scaleoutd.cli.terminal import colours, fail
from scaleoutd.errors import ScaleoutError

USAGE = 64  # EX_USAGE
INTERRUPTED = 130


def show_error(error: ScaleoutError) -> None:
    """Message with code, then what to do, on standard error."""
    fail(error.message, error.code, error.hint)


def run_command(command: click.Command) -> NoReturn:
    """Runs a click command and ends the process."""
    try:
        status = command.main(standalone_mode=False, color=colours())
    except ScaleoutError as exc:
        show_error(exc)
        sys.exit(exc.exit_status)
    except click.exceptions.Exit as exc:
        sys.exit(exc.exit_code)
    except click.UsageError as exc:
        exc.show()
        sys.exit(USAGE)
    except click.ClickException as exc:
        exc.show()
        sys.exit(exc.exit_code)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(INTERRUPTED)
    sys.exit(status if isinstance(status, int) else 0)
