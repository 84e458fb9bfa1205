# SPDX-License-Identifier: Apache-2.0
"""The combiner as one object: start it, hand out tokens and certificates, run a session, look at what came.

    with DevCombiner() as combiner:
        key = combiner.issue_client_certificate("ward-7")
        token = combiner.mint_enrollment()
        ...
        combiner.start_session(seed_model, rounds=3, min_clients=2, round_timeout_s=60)
        combiner.wait_session(120)
        combiner.history

Rules: loopback only; everything is in memory but models and certificates, which are in a folder that goes away.
"""

from __future__ import annotations

import json
import tempfile
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from scaleoutd.devcombiner.admission import Admission
from scaleoutd.devcombiner.board import Board
from scaleoutd.devcombiner.ca import CertificateAuthority
from scaleoutd.devcombiner.container import read_container
from scaleoutd.devcombiner.faults import Faults
from scaleoutd.devcombiner.grpc_service import EdgeService
from scaleoutd.devcombiner.listeners import (
    LOOPBACK,
    ClientCertificate,
    GrpcListener,
    ServerCertificate,
    TlsOptions,
    rest_context,
    server_key,
)
from scaleoutd.devcombiner.models import ModelStore
from scaleoutd.devcombiner.npz import FlatArray, read_npz
from scaleoutd.devcombiner.records import RoundRecord, Stream, UpdateRecord, ValidationRecord
from scaleoutd.devcombiner.rest import Assignment, RestApi, RestServer
from scaleoutd.devcombiner.rounds import Session, SessionPlan, keep_model
from scaleoutd.devcombiner.tokens import CLIENT_REFRESH, ENROLLMENT, USER_REFRESH, TokenOffice
from scaleoutd.durable import make_private_folder
from scaleoutd.errors import ConfigError
from scaleoutd.proto import edge_pb2 as edge


class DevCombiner:
    """See the module.  `folder` None makes a temporary one; a given folder must be empty and is left in place."""

    def __init__(
        self,
        *,
        folder: Path | None = None,
        client_certificate: ClientCertificate = "required",
        rest_certificate: ServerCertificate = "good",
        grpc_certificate: ServerCertificate = "good",
        rest_plaintext: bool = False,
        grpc_plaintext: bool = False,
        hostname: str = "localhost",
        rest_port: int = 0,
        grpc_port: int = 0,
        access_lifetime_s: int = 3600,
        rotate_refresh: bool = True,
    ) -> None:
        self._temporary = tempfile.TemporaryDirectory(prefix="devcombiner-") if folder is None else None
        self.folder = Path(self._temporary.name) if self._temporary else _empty(folder)
        self._hostname = hostname
        self._ports = (rest_port, grpc_port)
        self.rest_tls = TlsOptions(rest_certificate, rest_plaintext, client_certificate)
        self.grpc_tls = TlsOptions(grpc_certificate, grpc_plaintext, client_certificate)
        self.faults = Faults()
        self.board = Board()
        self.office = TokenOffice(access_lifetime_s=access_lifetime_s, rotate_refresh=rotate_refresh)
        self.ca = CertificateAuthority(self.folder / "ca")
        self.other_ca = CertificateAuthority(self.folder / "other-ca", "another CA")
        self.store = ModelStore(self.folder / "models")
        self.history: list[RoundRecord] = []
        self.session: Session | None = None
        admission = Admission(self.board, self.office, self.faults)
        self._service = EdgeService(self.board, self.store, self.faults, admission, self._cut)
        self._grpc: GrpcListener | None = None
        self._rest: RestServer | None = None

    # -- life ---------------------------------------------------------------------------------------------------------

    def start(self) -> Self:
        """Listens on both ports."""
        grpc_key = server_key(self.grpc_tls, self.ca, self.other_ca, self._hostname)
        self._grpc = GrpcListener(self._service.handlers, self.grpc_tls, grpc_key, self.ca)
        self._grpc.start(self._ports[1])
        self._start_rest(self._ports[0])
        return self

    def stop(self) -> None:
        """Ends the session, both listeners and, when it is its own, the folder."""
        if self.session is not None:
            self.session.stop()
        if self._rest is not None:
            self._rest.stop()
            self._rest = None
        if self._grpc is not None:
            self._grpc.close()
        if self._temporary is not None:
            self._temporary.cleanup()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def restart_grpc(self, down_s: float = 0.0) -> None:
        """Every connection is cut; the port is back after `down_s`; nothing on the board is lost."""
        self._listener().restart(down_s)

    def stop_grpc(self) -> None:
        """The port refuses connections until `start_grpc`."""
        self._listener().stop()

    def start_grpc(self) -> None:
        """Back on the same port."""
        self._listener().start()

    # -- where and who ------------------------------------------------------------------------------------------------

    @property
    def api_url(self) -> str:
        """For `--api-url`."""
        if self._rest is None:
            raise ConfigError("cannot tell the address: the combiner is not started")
        scheme = "http" if self.rest_tls.plaintext else "https"
        return f"{scheme}://{self._hostname}:{self._rest.server_address[1]}"

    @property
    def grpc_port(self) -> int:
        """The combiner's port, which clients learn from /clients/add."""
        return self._listener().port

    @property
    def ca_file(self) -> Path:
        """The CA of both servers and, with mTLS, of the clients."""
        return self.ca.ca_file

    def mint_enrollment(self, *, lifetime_s: int = 3600) -> str:
        """A token for `client start --token`, good for any number of clients."""
        return self.office.mint(ENROLLMENT, "", time.time(), lifetime_s)

    def mint_refresh(self, client_id: str, *, lifetime_s: int = 86400) -> str:
        """A client's refresh token, good once (unless rotate_refresh is off)."""
        return self.office.mint(CLIENT_REFRESH, client_id, time.time(), lifetime_s)

    def mint_user_refresh(self, *, lifetime_s: int = 86400) -> str:
        """The other kind of refresh token, redeemed at /api/auth/refresh."""
        return self.office.mint(USER_REFRESH, "", time.time(), lifetime_s)

    def issue_client_certificate(self, name: str, *, expired: bool = False, other_ca: bool = False) -> tuple[Path, Path]:
        """(certificate, key) as PEM files."""
        issued = (self.other_ca if other_ca else self.ca).issue_client(name, expired=expired)
        return issued.certificate, issued.key

    @property
    def streams(self) -> list[Stream]:
        """Every model transfer that came to its end, in that order."""
        return self._service.streams

    # -- work ---------------------------------------------------------------------------------------------------------

    def start_session(
        self,
        seed_model: bytes,
        rounds: int,
        min_clients: int,
        round_timeout_s: float,
        *,
        validate: bool = True,
        client_settings: dict[str, Any] | None = None,
        deflate: bool = False,
    ) -> Session:
        """Begins; `seed_model` is a container or a bare npz, FormatError if not.  One session at a time."""
        if self.session is not None and self.session.status == "running":
            raise ConfigError("cannot start a session: one is running")
        plan = SessionPlan(rounds, min_clients, round_timeout_s, validate, client_settings or {}, deflate)
        read_npz(read_container(seed_model).weights)
        seed_id = keep_model(self.store, seed_model, deflate=deflate)
        self.session = Session(self.board, self.store, plan, seed_id, self.history)
        self.session.start()
        return self.session

    def wait_session(self, timeout_s: float) -> Session:
        """The ended session; TransportError when it has not ended after `timeout_s`."""
        if self.session is None:
            raise ConfigError("cannot wait for a session: none was started")
        self.session.wait(timeout_s)
        return self.session

    def put_model(self, model: bytes, *, deflate: bool = False) -> str:
        """Stores a model for `offer_task`; returns its id."""
        return keep_model(self.store, model, deflate=deflate)

    def arrays(self, model_id: str) -> dict[str, FlatArray]:
        """A stored model's numbers."""
        return read_npz(read_container(self.store.read(model_id)).weights)

    def offer_task(
        self,
        client_id: str,
        task_type: str,
        model_id: str,
        *,
        client_settings: dict[str, Any] | None = None,
        data: str | None = None,
        session_id: str = "",
        round_id: str = "",
        correlation_id: str = "",
    ) -> str:
        """One task for the client's next poll; returns its correlation id.  `data` replaces the JSON of the settings."""
        text = json.dumps({"client_settings": client_settings or {}}) if data is None else data
        return self.board.offer(
            client_id,
            task_type,
            model_id,
            data=text,
            session_id=session_id,
            round_id=round_id,
            correlation_id=correlation_id,
        ).correlation_id

    def stop_task(self, correlation_id: str, status: str = "INTERRUPTED") -> None:
        """Tells the client to stop it: INTERRUPTED or TIMEOUT."""
        self.board.stop_task(correlation_id, status)

    # -- what came ----------------------------------------------------------------------------------------------------

    @property
    def updates(self) -> list[UpdateRecord]:
        """All model updates, repetitions too."""
        return self.board.updates

    @property
    def validations(self) -> list[ValidationRecord]:
        """All validations, repetitions too."""
        return self.board.validations

    @property
    def reports(self) -> list[edge.ActivityReport]:
        """All activity reports."""
        return self.board.reports

    @property
    def statuses(self) -> list[edge.Status]:
        """All status messages."""
        return self.board.statuses

    def _start_rest(self, port: int) -> None:
        key = server_key(self.rest_tls, self.ca, self.other_ca, self._hostname)
        api = RestApi(self.board, self.office, self.faults, Assignment(self._hostname, self.grpc_port))
        self._rest = RestServer((LOOPBACK, port), api, rest_context(self.rest_tls, key, self.ca))
        self._rest.start()

    def _listener(self) -> GrpcListener:
        if self._grpc is None:
            raise ConfigError("cannot use the combiner: it is not started")
        return self._grpc

    def _cut(self) -> None:
        # In a thread of its own: stopping waits for the handlers, and a handler is who asks.
        threading.Thread(target=self.restart_grpc, name="devcombiner-cut", daemon=True).start()


def _empty(folder: Path | None) -> Path:
    if folder is None or (folder.exists() and any(folder.iterdir())):
        raise ConfigError(f"cannot use {folder}: the folder must be new or empty", hint="Name another --state folder.")
    return make_private_folder(folder)
