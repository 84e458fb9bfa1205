# SPDX-License-Identifier: Apache-2.0
"""A bare client for the tests: one gRPC channel and one HTTPS call, nothing hidden."""

from __future__ import annotations

import http.client
import json
import ssl
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc

from scaleoutd.devcombiner.server import DevCombiner
from scaleoutd.proto import edge_pb2 as edge
from scaleoutd.proto.methods import Method

Pair = tuple[Path, Path]


class Wire:
    """One client's channel; the token is of `client_id` unless another is given."""

    def __init__(self, channel: grpc.Channel, client_id: str, token: str) -> None:
        self.channel = channel
        self.metadata = (
            ("client", client_id),
            ("client-id", client_id),
            ("name", client_id),
            ("authorization", f"Bearer {token}"),
        )
        self.client_id = client_id

    def call(self, method: Method, request: Any, *extra: tuple[str, str], timeout_s: float = 60) -> Any:
        """The answer; for a streaming answer the call, to be iterated."""
        bound = getattr(self.channel, method.kind)(
            method.path,
            request_serializer=method.request.SerializeToString,
            response_deserializer=method.response.FromString,
        )
        return bound(request, metadata=self.metadata + extra, timeout=timeout_s)


@contextmanager
def wire(combiner: DevCombiner, client_id: str = "c1", *, pair: Pair | None = None, token: str | None = None) -> Iterator[Wire]:
    """A channel with a good certificate and token, or with what is given."""
    if token is None:
        token = access_token(combiner, client_id)
    certificate, key = pair or combiner.issue_client_certificate(client_id)
    with secure_channel(combiner, (certificate, key)) as channel:
        yield Wire(channel, client_id, token)


def access_token(combiner: DevCombiner, client_id: str) -> str:
    return combiner.office.mint("client", client_id, time.time())


def secure_channel(combiner: DevCombiner, pair: Pair | None) -> grpc.Channel:
    """TLS to the combiner's port under the name localhost."""
    certificate, key = (pair[0].read_bytes(), pair[1].read_bytes()) if pair else (None, None)
    credentials = grpc.ssl_channel_credentials(combiner.ca_file.read_bytes(), key, certificate)
    options = (("grpc.use_local_subchannel_pool", 1), ("grpc.initial_reconnect_backoff_ms", 100))
    return grpc.secure_channel(f"localhost:{combiner.grpc_port}", credentials, options=options)


def post(combiner: DevCombiner, path: str, body: Any, *, bearer: str = "", pair: Pair | None = None) -> tuple[int, Any, Any]:
    """(status, JSON, headers)."""
    context = ssl.create_default_context(cafile=str(combiner.ca_file))
    if pair is not None:
        context.load_cert_chain(*pair)
    port = int(combiner.api_url.rpartition(":")[2])
    connection = http.client.HTTPSConnection("localhost", port, context=context, timeout=60)
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {bearer}"} if bearer else {})
    try:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        connection.request("POST", path, data, headers)
        response = connection.getresponse()
        return response.status, json.loads(response.read()), response.headers
    finally:
        connection.close()


def status_of(error: grpc.RpcError) -> grpc.StatusCode:
    return error.code()


def chunks(*parts: bytes) -> Iterable[Any]:
    return iter([edge.FileChunk(data=part) for part in parts])
