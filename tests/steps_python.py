# SPDX-License-Identifier: Apache-2.0
"""The Python of official projects' steps: the system's numpy, torch and scikit-learn, with the official library beside them."""

from __future__ import annotations

import subprocess
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[1] / ".venv-steps"


def missing(*modules: str) -> str:
    """Why steps that import `modules` cannot run here; "" when they can.  What `make test` sets up as root is there."""
    python = FOLDER / "bin" / "python"
    if not python.exists():
        return "there is no .venv-steps; tools/setup.sh official makes it"
    asked = subprocess.run([str(python), "-c", f"import {', '.join(modules)}"], capture_output=True, text=True)
    if asked.returncode == 0:
        return ""
    return f"{asked.stderr.splitlines()[-1]}; root installs it with apt-get install python3-numpy python3-torch python3-sklearn"
