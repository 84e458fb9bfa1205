# SPDX-License-Identifier: Apache-2.0
"""The official client as a child, in one of its two modes, for the benchmarks to compare with."""

from __future__ import annotations

import os
import subprocess
from contextlib import ExitStack
from pathlib import Path

from scaleoutd.devcombiner.server import DevCombiner
from tests.e2e.site import ROOT

MODES = ("dispatcher", "importer")


def start_official(stack: ExitStack, combiner: DevCombiner, folder: Path, mode: str, *, telemetry: bool = False) -> int:
    """Its pid.  `folder` holds `client/`, and becomes its home and the place of its temporary files."""
    environment = {
        "PATH": f"{ROOT / '.venv-official' / 'bin'}:{os.environ['PATH']}",
        "HOME": str(folder),
        "SCALEOUT_HOME_DIR": str(folder),
        "SCALEOUT_GRPC_ROOT_CERT_PATH": str(combiner.ca_file),
        "REQUESTS_CA_BUNDLE": str(combiner.ca_file),
        "SCALEOUT_CLIENT_TASK_POLLING_INTERVAL": "1",
        "SCALEOUT_CLIENT_SEND_TELEMETRY": str(telemetry).lower(),
        "TMPDIR": str(folder),
    } | {key: value for key, value in os.environ.items() if key.startswith("OPENBLAS_")}
    command = [
        str(ROOT / ".venv-official/bin/scaleout"), "client", "start", "--api-url", combiner.api_url,
        "--token", combiner.mint_enrollment(), "--name", mode,
    ]  # fmt: skip
    if mode == "dispatcher":
        command.append("--dispatcher")
    else:
        command.append("--disable-managed-env")
    log = stack.enter_context((folder / "client.log").open("wb"))
    process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
    stack.callback(process.wait)
    stack.callback(process.terminate)
    return process.pid
