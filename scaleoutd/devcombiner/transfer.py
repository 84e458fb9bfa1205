# SPDX-License-Identifier: Apache-2.0
"""ModelService: Download and Upload, with the faults a network and a bad server can show.

Download: 1 MiB chunks, then the trailing metadata `checksum` (hex SHA-256).  Upload: metadata `model-id` and `checksum`,
checked; what is refused is answered with ModelResponse.status FAILED, as a combiner does.
Source: PROTOCOL.md section 1, point 8.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator

import grpc

from scaleoutd.devcombiner.faults import Faults
from scaleoutd.devcombiner.models import CHUNK_BYTES, ModelStore
from scaleoutd.devcombiner.records import Stream
from scaleoutd.errors import FormatError, TransportError
from scaleoutd.proto import edge_pb2 as edge


class Transfer:
    """`cut` ends every connection of the server at once, as a pulled cable would."""

    def __init__(self, store: ModelStore, faults: Faults, cut: Callable[[], None]) -> None:
        self._store = store
        self._faults = faults
        self._cut = cut
        self.streams: list[Stream] = []

    def download(self, request: edge.ModelRequest, context: grpc.ServicerContext) -> Iterator[edge.FileChunk]:
        """The model's bytes; NOT_FOUND when there is no such model."""
        began_s = time.monotonic()
        model = self._store.find(request.model_id)
        if model is None:
            context.abort(grpc.StatusCode.NOT_FOUND, f"there is no model {request.model_id!r}")
        digest, sent_bytes = hashlib.sha256(), 0
        limit_bytes = self._faults.take_limit("truncate_download_bytes")
        corrupt = self._faults.use("corrupt_downloads")
        for chunk in self._padded(model.chunks(), model.size_bytes):
            digest.update(chunk)
            if limit_bytes is not None and sent_bytes + len(chunk) > limit_bytes:
                yield edge.FileChunk(data=chunk[: limit_bytes - sent_bytes])
                context.abort(grpc.StatusCode.UNAVAILABLE, f"fault: download ends after {limit_bytes} bytes")
            yield edge.FileChunk(data=_flipped(chunk) if corrupt else chunk)
            corrupt = False
            sent_bytes += len(chunk)
        checksum = hashlib.sha256(b"other").hexdigest() if self._faults.use("wrong_checksums") else digest.hexdigest()
        if not self._faults.omit_checksum:
            context.set_trailing_metadata((("checksum", checksum),))
        self.streams.append(Stream("download", request.model_id, sent_bytes, began_s, time.monotonic()))

    def upload(self, chunks: Iterator[edge.FileChunk], context: grpc.ServicerContext) -> edge.ModelResponse:
        """Keeps the stream under the id that the client chose."""
        began_s = time.monotonic()
        metadata = {key: value for key, value in context.invocation_metadata() if isinstance(value, str)}
        model_id, checksum = metadata.get("model-id", ""), metadata.get("checksum", "")
        if not model_id or not checksum:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "an upload needs the metadata model-id and checksum")
        try:
            model = self._store.receive(model_id, self._limited(chunks, context), checksum)
        except (FormatError, TransportError) as exc:
            return edge.ModelResponse(status=edge.FAILED, message=str(exc))
        self.streams.append(Stream("upload", model_id, model.size_bytes, began_s, time.monotonic()))
        if self._faults.use("refuse_uploads"):
            return edge.ModelResponse(status=edge.FAILED, message="fault: upload refused")
        return edge.ModelResponse(status=edge.OK, message=f"{model.size_bytes} bytes")

    def _limited(self, chunks: Iterator[edge.FileChunk], context: grpc.ServicerContext) -> Iterator[bytes]:
        abort_bytes = self._faults.take_limit("abort_upload_bytes")
        drop_bytes = self._faults.take_limit("drop_upload_bytes")
        seen_bytes = 0
        for chunk in chunks:
            seen_bytes += len(chunk.data)
            if drop_bytes is not None and seen_bytes > drop_bytes:
                self._cut()
                context.abort(grpc.StatusCode.UNAVAILABLE, "fault: connection cut")
            if abort_bytes is not None and seen_bytes > abort_bytes:
                context.abort(grpc.StatusCode.UNAVAILABLE, f"fault: upload ends after {abort_bytes} bytes")
            yield chunk.data

    def _padded(self, chunks: Iterable[bytes], size_bytes: int) -> Iterator[bytes]:
        yield from chunks
        missing_bytes = self._faults.oversize_download_bytes - size_bytes
        while missing_bytes > 0:
            yield bytes(min(CHUNK_BYTES, missing_bytes))
            missing_bytes -= CHUNK_BYTES


def _flipped(chunk: bytes) -> bytes:
    middle = len(chunk) // 2
    return chunk[:middle] + bytes([chunk[middle] ^ 0xFF]) + chunk[middle + 1 :]
