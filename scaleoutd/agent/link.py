# SPDX-License-Identifier: Apache-2.0
"""From a configuration to an open session: certificate, token, assignment, channel, announcement.

One `open` is one attempt, in the order of PROTOCOL.md section 1; the caller waits between attempts.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from scaleoutd.agent.api import Api, Assignment, parse_origin
from scaleoutd.agent.config import AgentConfig
from scaleoutd.agent.dialects import Dialect
from scaleoutd.agent.dialects.edge import Edge
from scaleoutd.agent.handed import Handed
from scaleoutd.agent.pump import Pump
from scaleoutd.agent.tls import ClientFacts, PeerFacts, Tls, TlsFiles
from scaleoutd.agent.tokencache import write_tokens
from scaleoutd.agent.tokens import Cached, TokenKeeper
from scaleoutd.durable import make_private_folder, replace_file, storage_errors
from scaleoutd.errors import ConfigError, StorageError


@dataclass(frozen=True)
class LinkEvents:
    """Who hears what: a TLS connection to the combiner, a new token, a client certificate in use, one that cannot be used, a
    token that could not be put where the official client looks for it."""

    connected: Callable[[PeerFacts], None]
    renewed: Callable[[], None]
    loaded: Callable[[ClientFacts], None]
    bad_pair: Callable[[ConfigError], None]
    not_cached: Callable[[StorageError], None] = lambda exc: None


class Link:
    """Opens sessions for `config`."""

    def __init__(self, config: AgentConfig, events: LinkEvents) -> None:
        self._config, self._events = config, events
        files = TlsFiles(
            ca=Path(config.ca) if config.ca else None,
            certificate=Path(config.cert) if config.cert else None,
            key=Path(config.key) if config.key else None,
            certificate_required=config.client_certificate == "required",
            system_store=config.system_store,
        )
        self._api_origin = parse_origin(config.api_url)
        self.tls = Tls(files)
        self._api_tls = Tls(_api_files(config, files)) if config.api_ca or config.api_system_store else self.tls
        api = Api(self._api_origin, self._api_tls, scheme=config.auth_scheme)
        self._api = api
        self.tokens = TokenKeeper(
            api,
            make_private_folder(config.state) / "token.json",
            config.token,
            client_id=self._own_id(),
            name=config.name,
            on_renewed=events.renewed,
            on_saved=self._put_in_cache,
        )
        self.certificate: ClientFacts | None = None
        self._handed = Handed({})
        self.assignment: Assignment | None = None

    @property
    def where(self) -> str:
        """What is being connected to: the combiner when it is known, else the API."""
        return combiner_name(self.assignment) if self.assignment else f"{self._api_origin.host}:{self._api_origin.port}"

    def open(self) -> Dialect:
        """A session that is announced; raises what went wrong."""
        self.assignment = None
        self._load_certificate()
        token = self.tokens.access_token()
        self.assignment = self._assign(token)
        pump = Pump(self.tls, self.assignment.host, self.assignment.port, self._events.connected)
        session = Edge(
            pump,
            self.tokens,
            client_id=self.assignment.client_id,
            client_name=self._config.name or self.assignment.client_id,
            client_version=self._config.client_version,
            check_compatibility=self._config.check_compatibility,
            auth_scheme=self._config.auth_scheme,
            status_reporting=self._config.status_reporting,
            poll_interval_ms=self._config.poll_interval_ms,
            heartbeat_interval_ms=self._config.heartbeat_interval_ms,
        )
        try:
            session.connect()
        except BaseException:
            session.close()
            raise
        return session

    def reload(self, files: Mapping[str, int]) -> ClientFacts | None:
        """Takes new certificates for connections from now on; raises, and changes nothing, when they cannot be used.

        `files`: descriptors of credentials by name, else what is configured is read again.  Their bytes are kept in memory only.
        """
        handed = Handed(files)
        try:
            new = self.tls.replaced(handed.files(self.tls.files))
            facts = new.check_dates()
            new_api = None
            if self._api_tls is not self.tls:
                new_api = self._api_tls.replaced(replace(handed.files(self._api_tls.files), ca=self._api_tls.files.ca))
        except BaseException:
            handed.close()
            raise
        self.tls.adopt(new)
        if new_api is not None:
            self._api_tls.adopt(new_api)
        if handed.any:
            self._handed.close()
            self._handed = handed
        if facts is not None and facts != self.certificate:
            self.certificate = facts
            self._events.loaded(facts)
        return facts

    def _load_certificate(self) -> None:
        try:
            self.tls.reload()
            if self._api_tls is not self.tls:
                self._api_tls.reload()
        except ConfigError as exc:
            self._events.bad_pair(exc)  # the pair before it stays in use
        facts = self.tls.check_dates()
        if facts is not None and facts != self.certificate:
            self.certificate = facts
            self._events.loaded(facts)

    def _put_in_cache(self, tokens: Cached) -> None:
        """The way back to the official client stays open: the refresh token that counts lies where it looks."""
        if not self._config.token_cache_dir:
            return
        try:
            write_tokens(
                Path(self._config.token_cache_dir),
                tokens.client_id or self._config.client_id,
                access_token=tokens.access_token,
                refresh_token=tokens.refresh_token,
                expires_at_s=tokens.expires_at_s,
                now_s=time.time(),
            )
        except StorageError as exc:
            self._events.not_cached(exc)

    def _own_id(self) -> str:
        """The configured client id, else one that is made once: the combiner must know us again after a restart."""
        if self._config.client_id:
            return self._config.client_id
        path = make_private_folder(self._config.state) / "client_id"
        with storage_errors("read the client id"):
            if path.exists():
                return path.read_text(encoding="ascii").strip()
        client_id = str(uuid.uuid4())
        replace_file(path, client_id.encode())
        return client_id

    def _assign(self, token: str) -> Assignment:
        config = self._config
        if config.combiner:
            host, _, port = config.combiner.rpartition(":")
            if not host or not port.isdigit():
                raise ConfigError(f"cannot use the combiner {config.combiner!r}: expected HOST:PORT")
            return Assignment(self.tokens.client_id, host.strip("[]"), int(port))
        return self._api.assign(
            token,
            client_id=self.tokens.client_id,
            name=config.name or self.tokens.client_id,
            combiner=config.preferred_combiner,
            client_version=config.client_version,
        )


def _api_files(config: AgentConfig, files: TlsFiles) -> TlsFiles:
    return replace(files, ca=Path(config.api_ca) if config.api_ca else None, system_store=config.api_system_store)


def combiner_name(assignment: Assignment) -> str:
    return f"{assignment.host}:{assignment.port}"
