# SPDX-License-Identifier: Apache-2.0
"""Who is calling: the token and the names in a call's metadata, and the certificate of its connection.

Rules: an access token on every call; the client id in the metadata and in the message must be the token's; a refused
fingerprint is refused whatever the token says.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import grpc
from cryptography import x509
from cryptography.x509.oid import NameOID
from google.protobuf.message import Message

from scaleoutd.devcombiner.board import Board
from scaleoutd.devcombiner.ca import fingerprint_of
from scaleoutd.devcombiner.faults import Faults
from scaleoutd.devcombiner.tokens import ACCESS, TokenOffice, refused
from scaleoutd.errors import CredentialError


@dataclass(frozen=True, slots=True)
class Caller:
    """A client whose token was verified."""

    client_id: str
    name: str


class Admission:
    """Lets a call in or ends it with UNAUTHENTICATED or PERMISSION_DENIED."""

    def __init__(self, board: Board, office: TokenOffice, faults: Faults) -> None:
        self._board = board
        self._office = office
        self._faults = faults

    def admit(self, context: grpc.ServicerContext) -> Caller:
        """The caller, who is now on the board."""
        metadata = {key: value for key, value in context.invocation_metadata() if isinstance(value, str)}
        subject, fingerprint = peer_certificate(context)
        if fingerprint in self._faults.refused_fingerprints:
            context.abort(grpc.StatusCode.PERMISSION_DENIED, f"client certificate {fingerprint} is revoked")
        try:
            claims = self._office.verify(_bearer(metadata.get("authorization", "")), (ACCESS,), time.time())
        except CredentialError as exc:
            context.abort(grpc.StatusCode.UNAUTHENTICATED, str(exc))
        client_id = metadata.get("client-id", "")
        if not client_id or claims.client_id not in ("", client_id):
            context.abort(grpc.StatusCode.PERMISSION_DENIED, f"the token is not of client {client_id!r}")
        caller = Caller(client_id, metadata.get("name", ""))
        self._board.see_client(caller.client_id, caller.name, subject, fingerprint)
        return caller

    @staticmethod
    def check_message(caller: Caller, message: Message, context: grpc.ServicerContext) -> None:
        """The message's own client id, where it has one, must be the caller's."""
        claimed = getattr(message, "client_id", "") or getattr(message, "node_id", "")
        if claimed and claimed != caller.client_id:
            context.abort(grpc.StatusCode.PERMISSION_DENIED, f"{caller.client_id} speaks as {claimed}")


def peer_certificate(context: grpc.ServicerContext) -> tuple[str, str]:
    """(common name, SHA-256 fingerprint) of the connection's client certificate; empty strings when there is none."""
    pem = context.auth_context().get("x509_pem_cert")
    if not pem:
        return "", ""
    certificate = x509.load_pem_x509_certificate(bytes(pem[0]))
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return (str(names[0].value) if names else ""), fingerprint_of(certificate)


def _bearer(header: str) -> str:
    scheme, _, token = header.partition(" ")
    if scheme != "Bearer" or not token:
        raise refused("there is no Bearer token in the call's metadata")
    return token
