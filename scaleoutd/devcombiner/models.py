# SPDX-License-Identifier: Apache-2.0
"""The combiner's models: one file each, in a folder that goes away with the combiner.

Rules: an id is one path component of harmless characters; a model never changes (the same id with other bytes is
refused); a file appears under its id only when its checksum is known.
"""

from __future__ import annotations

import hashlib
import re
import threading
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from scaleoutd.durable import storage_errors
from scaleoutd.errors import FormatError, TransportError

CHUNK_BYTES = 1024 * 1024
MODEL_ID = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)


@dataclass(frozen=True, slots=True)
class StoredModel:
    """Where the bytes are, and what they are."""

    model_id: str
    path: Path
    size_bytes: int
    sha256: str

    def chunks(self) -> Iterator[bytes]:
        """The bytes in pieces of 1 MiB."""
        with self.path.open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                yield chunk


class ModelStore:
    """Thread safe."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._models: dict[str, StoredModel] = {}
        with storage_errors(f"make the model folder {folder}"):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def put(self, model_id: str, data: bytes) -> StoredModel:
        """Keeps `data` under `model_id`."""
        return self.receive(model_id, [data], "")

    def receive(self, model_id: str, chunks: Iterable[bytes], checksum: str) -> StoredModel:
        """Keeps a stream.  FormatError for a bad id, TransportError when it is not what `checksum` says (empty = any)."""
        if MODEL_ID.fullmatch(model_id) is None:
            raise FormatError(f"cannot keep the model: {model_id!r} is no model id", code="record-invalid")
        incoming = self._folder / f".incoming-{uuid.uuid4()}"
        try:
            with storage_errors(f"keep the model {model_id}"):
                size_bytes, digest = _write(incoming, chunks)
                if checksum and checksum != digest:
                    raise TransportError(
                        f"cannot keep the model {model_id}: its SHA-256 is {digest}, announced was {checksum}",
                        code="upload-refused",
                    )
                return self._adopt(incoming, model_id, size_bytes, digest)
        finally:
            incoming.unlink(missing_ok=True)

    def find(self, model_id: str) -> StoredModel | None:
        """None when there is no such model."""
        with self._lock:
            return self._models.get(model_id)

    def read(self, model_id: str) -> bytes:
        """All bytes; FormatError when there is no such model."""
        model = self.find(model_id)
        if model is None:
            raise FormatError(f"cannot read the model: there is none with id {model_id!r}", code="container-invalid")
        with storage_errors(f"read the model {model_id}"):
            return model.path.read_bytes()

    def all(self) -> dict[str, StoredModel]:
        """By id, in the order of arrival."""
        with self._lock:
            return dict(self._models)

    def _adopt(self, incoming: Path, model_id: str, size_bytes: int, digest: str) -> StoredModel:
        with self._lock:
            known = self._models.get(model_id)
            if known is not None:
                if known.sha256 != digest:
                    raise TransportError(
                        f"cannot keep the model {model_id}: it exists with SHA-256 {known.sha256}, sent was {digest}",
                        code="upload-refused",
                    )
                return known
            model = StoredModel(model_id, self._folder / f"{model_id}.model", size_bytes, digest)
            incoming.rename(model.path)
            self._models[model_id] = model
            return model


def _write(path: Path, chunks: Iterable[bytes]) -> tuple[int, str]:
    digest, size_bytes = hashlib.sha256(), 0
    with path.open("xb") as file:
        for chunk in chunks:
            file.write(chunk)
            digest.update(chunk)
            size_bytes += len(chunk)
    return size_bytes, digest.hexdigest()
