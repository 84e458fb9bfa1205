# SPDX-License-Identifier: Apache-2.0
"""The official client as a child process, in either mode."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from scaleoutd.devcombiner.server import DevCombiner
from tests.child import ended


@contextmanager
def official_client(
    bin_folder: Path, combiner: DevCombiner, folder: Path, name: str, *more: str, first_on_path: Sequence[Path] = ()
) -> Iterator[subprocess.Popen[bytes]]:
    """Runs in `folder`, which holds client/; what it prints is in client.log there."""
    environment = {
        "PATH": ":".join([*map(str, first_on_path), str(bin_folder), os.environ["PATH"]]),
        "HOME": str(folder),
        "SCALEOUT_HOME_DIR": str(folder),
        "SCALEOUT_GRPC_ROOT_CERT_PATH": str(combiner.ca_file),
        "REQUESTS_CA_BUNDLE": str(combiner.ca_file),
        "SCALEOUT_CLIENT_TASK_POLLING_INTERVAL": "1",
        "TMPDIR": str(folder),
        "OMP_NUM_THREADS": "1",
    }
    # Some machines must pin the OpenBLAS kernel or numpy computes wrong numbers.
    environment |= {key: value for key, value in os.environ.items() if key.startswith("OPENBLAS_")}
    command = [str(bin_folder / "scaleout"), "client", "start", "--api-url", combiner.api_url, "--name", name, *more]
    command += ["--token", combiner.mint_enrollment(), "--disable-managed-env"]
    with (
        open(folder / "client.log", "wb") as log,
        ended(subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)) as process,
    ):
        yield process
