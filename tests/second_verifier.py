# SPDX-License-Identifier: Apache-2.0
"""tools/verify_manifest.py as tests call it.  It has no annotations: one file for Python 3.9, to be read by an auditor."""

from __future__ import annotations

from typing import Any

from tools import verify_manifest

second: Any = verify_manifest
