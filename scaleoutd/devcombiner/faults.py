# SPDX-License-Identifier: Apache-2.0
"""Switches that make the combiner misbehave, each off by default and each explicit.

A number counts down with each use; a flag stays until it is cleared.  Set them while the combiner runs.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Literal

import grpc

When = Literal["before", "after"]


@dataclass(slots=True)
class RpcAnswer:
    """A status in place of the next `times` answers of `method`; "after" means that the call took effect first."""

    method: str
    status: grpc.StatusCode
    times: int
    when: When
    details: str


@dataclass(slots=True)
class RestAnswer:
    """A status in place of the next `times` answers under `path`; `location` goes into a redirect."""

    path: str
    status: int
    times: int
    location: str


@dataclass(slots=True)
class Faults:
    """Every fault the combiner can show.  Sizes are bytes of the stream, counted from its start."""

    grpc_secure: bool | None = True  # what /clients/add says; None leaves the field out
    refuse_version: bool = False  # VersionCheck answers success=false
    refuse_connect: bool = False  # Announce Connect answers PERMISSION_DENIED
    refused_fingerprints: set[str] = field(default_factory=set)  # certificates that TLS accepts and the service does not

    omit_checksum: bool = False  # Download without the trailer
    corrupt_downloads: int = 0  # one byte flipped, checksum of the true bytes
    wrong_checksums: int = 0  # true bytes, checksum of others
    truncate_download_bytes: int | None = None  # UNAVAILABLE after this many bytes, once
    oversize_download_bytes: int = 0  # zeros after the model up to this size, checksum of all of it

    refuse_uploads: int = 0  # ModelResponse.status = FAILED
    abort_upload_bytes: int | None = None  # UNAVAILABLE after this many bytes, once
    drop_upload_bytes: int | None = None  # every connection is cut after this many bytes, once

    rpc_answers: list[RpcAnswer] = field(default_factory=list)
    rest_answers: list[RestAnswer] = field(default_factory=list)
    rpc_delays_s: dict[str, float] = field(default_factory=dict)  # method -> wait before the answer, each time
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def answer_rpc(
        self, method: str, status: grpc.StatusCode, *, times: int = 1, when: When = "before", details: str = "fault"
    ) -> None:
        """`faults.answer_rpc("SendModelUpdate", StatusCode.UNAVAILABLE, when="after")`: taken, and yet not acknowledged."""
        with self.lock:
            self.rpc_answers.append(RpcAnswer(method, status, times, when, details))

    def answer_rest(self, path: str, status: int, *, times: int = 1, location: str = "") -> None:
        """`faults.answer_rest("/api/v1/clients/add", 503, times=2)`."""
        with self.lock:
            self.rest_answers.append(RestAnswer(path, status, times, location))

    def next_rpc(self, method: str, when: When) -> RpcAnswer | None:
        """The status that is due for this call, and counts it."""
        with self.lock:
            for answer in self.rpc_answers:
                if answer.method == method and answer.when == when and answer.times > 0:
                    answer.times -= 1
                    return answer
        return None

    def next_rest(self, path: str) -> RestAnswer | None:
        """The status that is due for this request, and counts it."""
        with self.lock:
            for answer in self.rest_answers:
                if answer.path == path and answer.times > 0:
                    answer.times -= 1
                    return answer
        return None

    def use(self, name: Literal["corrupt_downloads", "wrong_checksums", "refuse_uploads"]) -> bool:
        """True, and one less, while the counter is above zero."""
        with self.lock:
            left: int = getattr(self, name)
            if left > 0:
                setattr(self, name, left - 1)
            return left > 0

    def take_limit(self, name: Literal["truncate_download_bytes", "abort_upload_bytes", "drop_upload_bytes"]) -> int | None:
        """The limit, which is cleared: it holds for one stream."""
        with self.lock:
            limit: int | None = getattr(self, name)
            setattr(self, name, None)
            return limit
