# SPDX-License-Identifier: Apache-2.0
"""Model files made by hand, good and hostile: no numeric library is needed."""

from __future__ import annotations

import io
import json
import struct
import zipfile
from collections.abc import Mapping
from typing import Any


def npy(descr: str, shape: tuple[int, ...], data: bytes, header: str | None = None, version: int = 1) -> bytes:
    """An npy file as numpy writes it; `header` replaces the literal."""
    text = header if header is not None else f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape!r}, }}"
    length_bytes = 2 if version == 1 else 4
    padding = -(8 + length_bytes + len(text) + 1) % 64
    raw = (text + " " * padding + "\n").encode()
    return b"\x93NUMPY" + bytes((version, 0)) + len(raw).to_bytes(length_bytes, "little") + raw + data


def npz(arrays: Mapping[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    return zipped({f"{name}.npy": data for name, data in arrays.items()}, method)


def zipped(entries: Mapping[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def container(weights: bytes, method: int = zipfile.ZIP_DEFLATED, **metadata: Any) -> bytes:
    """The container of PROTOCOL.md section 1.10."""
    values = {"model_id": "model-1", "helper_type": "numpyhelper", "_version": 2, **metadata}
    return zipped({"metadata.json": json.dumps(values).encode(), "training_model.bin": weights}, method)


def safetensors(header: Any, data: bytes) -> bytes:
    raw = json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + data
