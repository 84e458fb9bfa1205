# SPDX-License-Identifier: Apache-2.0
"""The model container on the wire, as a combiner reads and writes it.

A ZIP with `metadata.json` (`model_id`, `helper_type`, `_version` 2) and `training_model.bin`, stored or deflated.  (A combiner
reads any ZIP method; zipfile inflates bzip2 and LZMA without a bound, and no client writes them.)  Bytes that are no ZIP, or a
ZIP without `metadata.json`, are legacy weights as they are (a bare npz is such a ZIP).
Source: PROTOCOL.md section 1, point 10.
"""

from __future__ import annotations

import io
import json
import lzma
import struct
import zipfile
import zlib
from dataclasses import dataclass

from scaleoutd.errors import FormatError

VERSION = 2
METADATA = "metadata.json"
WEIGHTS = "training_model.bin"
MAX_METADATA_BYTES = 1024 * 1024
MAX_WEIGHTS_BYTES = 2 * 1024**3

# What zipfile raises on hostile bytes, besides BadZipFile: it validates late and lets the decoders' errors through.
ZIP_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    OSError,
    ValueError,
    NotImplementedError,
    RuntimeError,
)


@dataclass(frozen=True, slots=True)
class Container:
    """What was in it; `model_id` and `helper_type` are empty for legacy weights."""

    model_id: str
    helper_type: str
    weights: bytes
    legacy: bool


def read_container(data: bytes, *, max_weights_bytes: int = MAX_WEIGHTS_BYTES) -> Container:
    """FormatError `container-invalid` for a damaged ZIP, a newer version, or metadata that is not what it must be."""
    if not zipfile.is_zipfile(io.BytesIO(data)):
        return Container("", "", data, legacy=True)
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            names = archive.namelist()
            if METADATA not in names:
                return Container("", "", data, legacy=True)
            metadata = _metadata(read_member(archive, archive.getinfo(METADATA), MAX_METADATA_BYTES))
            if WEIGHTS not in names:
                raise _refuse(f"it has no {WEIGHTS}")
            weights = read_member(archive, archive.getinfo(WEIGHTS), max_weights_bytes)
    except ZIP_ERRORS as exc:
        raise _refuse(str(exc)[:400]) from exc
    return Container(metadata[0], metadata[1], weights, legacy=False)


def write_container(
    model_id: str, weights: bytes, *, helper_type: str = "numpyhelper", deflate: bool = False, version: int = VERSION
) -> bytes:
    """The bytes that a Download streams."""
    method = zipfile.ZIP_DEFLATED if deflate else zipfile.ZIP_STORED
    metadata = json.dumps({"model_id": model_id, "helper_type": helper_type, "_version": version})
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, content in ((METADATA, metadata.encode()), (WEIGHTS, weights)):
            member = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            member.compress_type = method
            archive.writestr(member, content)
    return out.getvalue()


def read_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, max_bytes: int) -> bytes:
    """The bytes of a member, never more in memory than it says; BadZipFile, one of ZIP_ERRORS, for what is refused."""
    name, size = member.filename[:200], member.file_size
    if size > max_bytes:
        raise zipfile.BadZipFile(f"{name} inflates to {size} bytes, at most {max_bytes} are read")
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise zipfile.BadZipFile(f"{name} is neither stored nor deflated")
    with archive.open(member) as file:
        # With a number: read() inflates all that is there first, and only then looks at what the member said.
        data = file.read(size)
    if len(data) != size:
        raise zipfile.BadZipFile(f"{name} has {len(data)} bytes, {size} were announced")
    return data


def _metadata(data: bytes) -> tuple[str, str]:
    try:
        fields = json.loads(data)
    except ValueError as exc:
        raise _refuse(f"{METADATA} is no JSON: {exc}") from exc
    if not isinstance(fields, dict):
        raise _refuse(f"{METADATA} is no JSON object")
    version = fields.get("_version", VERSION)
    if type(version) is not int or version > VERSION:
        raise _refuse(f"its _version is {version!r}, at most {VERSION} is known")
    model_id, helper_type = fields.get("model_id", ""), fields.get("helper_type", "")
    if not isinstance(model_id, str) or not isinstance(helper_type, str):
        raise _refuse("model_id and helper_type must be strings")
    return model_id, helper_type


def _refuse(cause: str) -> FormatError:
    return FormatError(f"cannot read the model container: {cause}", code="container-invalid", hint="See PROTOCOL.md, point 10.")
