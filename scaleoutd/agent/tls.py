# SPDX-License-Identifier: Apache-2.0
"""The one place for TLS: one policy for REST and gRPC, and a stable code for each way it fails.

Policy (RFC 8446, RFC 9525):
  1. TLS 1.3 or newer, the configured CA and no other, the server's certificate for the host that was dialled.
  2. A client certificate where one is demanded; it is looked at before it is used: of the key, in date.
  3. Files are read at the start and at `reload`.  A reload makes new contexts, those in use are not touched; a pair that
     cannot be used changes nothing.
  4. With TLS 1.3 a server refuses a client certificate after the client's handshake is done (RFC 8446 section 4.4.2.4):
     an alert, or the end of the stream, before the server's first byte is reported as `client-certificate-refused`.

No HTTP CONNECT proxy yet: connections go straight to the host.
"""

from __future__ import annotations

import os
import socket
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from scaleoutd.agent.der import CertificateFacts, certificate_facts, first_of_pem
from scaleoutd.errors import ConfigError, CredentialError, FormatError, ScaleoutError, TransportError

Alpn = Literal["h2", "http/1.1"]
HANDSHAKE_TIMEOUT_S = 10.0
MAX_PEM_BYTES = 1024 * 1024

# X509_V_ERR_* of OpenSSL's x509_vfy.h.
_EXPIRED = {9, 10, 13, 14}
_NAME = {62, 63, 64}
# What OpenSSL makes of a first answer that is no TLS record: an HTTP/2 SETTINGS frame, an HTTP/1 status line.
_NO_TLS = {"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "PACKET_LENGTH_TOO_LONG", "RECORD_LAYER_FAILURE"}


@dataclass(frozen=True)
class TlsFiles:
    """Where the certificates lie (PEM).  `system_store` allows the system's CAs when `ca` is None, and only then."""

    ca: Path | None
    certificate: Path | None
    key: Path | None
    certificate_required: bool = True
    system_store: bool = False


@dataclass(frozen=True)
class PeerFacts:
    """Who is at the other end, for the trail."""

    host: str
    port: int
    spki_sha256: str
    subject: str
    not_after: str
    tls_version: str
    client_certificate: bool


@dataclass(frozen=True)
class ClientFacts:
    """Our own certificate, for the trail."""

    subject: str
    serial: str
    not_after: str
    spki_sha256: str


class Tls:
    """Contexts made of `files`; `now` gives the time that certificates are compared with."""

    def __init__(self, files: TlsFiles, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self.files = files
        self._now = now
        self._lock = threading.Lock()
        self._contexts = self._build()

    @property
    def has_certificate(self) -> bool:
        return self.files.certificate is not None

    def reload(self) -> None:
        """Reads the files again for connections from now on; raises, and changes nothing, when they cannot be used."""
        contexts = self._build()
        with self._lock:
            self._contexts = contexts

    def replaced(self, files: TlsFiles) -> Tls:
        """The same with other files, to be looked at before it is adopted; raises when they cannot be used."""
        return Tls(files, self._now)

    def adopt(self, other: Tls) -> None:
        """Connections from now on are `other`'s."""
        with self._lock:
            self.files, self._contexts = other.files, other._contexts

    def context(self, alpn: Alpn) -> ssl.SSLContext:
        with self._lock:
            return self._contexts[alpn]

    def check_dates(self) -> ClientFacts | None:
        """The client certificate as it lies there now, None without one; CredentialError when it is not valid now."""
        if self.files.certificate is None:
            return None
        certificate = _load_certificate(self.files.certificate)
        now = self._now().replace(tzinfo=None)
        first, last = certificate.not_before, certificate.not_after
        if not first <= now <= last:
            raise CredentialError(
                f"cannot use the client certificate {_shown(self.files.certificate)}: it is valid from {first:%Y-%m-%d %H:%M}"
                f" to {last:%Y-%m-%d %H:%M} UTC, now is {now:%Y-%m-%d %H:%M}",
                code="client-certificate-invalid",
                hint="Ask the CA for a new certificate, put it in place; it is read again at the next attempt.",
            )
        return ClientFacts(
            subject=certificate.subject[:256],
            serial=certificate.serial,
            not_after=f"{last:%Y-%m-%dT%H:%M:%SZ}",
            spki_sha256=certificate.spki_sha256,
        )

    def dial(self, host: str, port: int, alpn: Alpn, timeout_s: float = HANDSHAKE_TIMEOUT_S) -> ssl.SSLSocket:
        """A connected TLS socket with time-out `timeout_s`; errors have the codes of this module."""
        raw = connect_tcp(host, port, timeout_s)
        try:
            return self.context(alpn).wrap_socket(raw, server_hostname=host)
        except (OSError, ValueError) as exc:
            raw.close()
            raise handshake_error(exc, host, port) from exc

    def _build(self) -> dict[Alpn, ssl.SSLContext]:
        files = self.files
        if files.certificate_required and files.certificate is None:
            raise ConfigError(
                "cannot connect: a client certificate is demanded and none is configured",
                code="client-certificate-missing",
                hint="Give --cert and --key, or write client_certificate: none where that is allowed.",
            )
        if (files.certificate is None) != (files.key is None):
            found = "a certificate without its key" if files.certificate else "a key without its certificate"
            raise ConfigError(
                f"cannot use the client certificate: expected certificate and key, found {found}", hint="Give --cert and --key."
            )
        return {alpn: self._context(alpn) for alpn in ("h2", "http/1.1")}

    def _context(self, alpn: Alpn) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.set_alpn_protocols([alpn])
        _load_authority(context, self.files)
        if self.files.certificate is not None and self.files.key is not None:
            _load_pair(context, self.files.certificate, self.files.key)
        return context


def connect_tcp(host: str, port: int, timeout_s: float) -> socket.socket:
    try:
        raw = socket.create_connection((host, port), timeout_s)
    except OSError as exc:
        raise TransportError(
            f"cannot reach {host}:{port}: {exc.strerror or exc}", hint="Check the address, the route and the firewall."
        ) from exc
    raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    return raw


def peer_facts(tls: ssl.SSLSocket | ssl.SSLObject, host: str, port: int, has_certificate: bool) -> PeerFacts:
    """Facts of a finished handshake."""
    der = tls.getpeercert(binary_form=True)
    if not der:
        raise TransportError(f"cannot use {host}:{port}: the server showed no certificate", code="tls-failed")
    try:
        certificate = certificate_facts(der)
    except FormatError as exc:
        raise TransportError(f"cannot use {host}:{port}: {exc.message}", code="tls-failed") from exc
    return PeerFacts(
        host=host,
        port=port,
        spki_sha256=certificate.spki_sha256,
        subject=certificate.subject[:256],
        not_after=f"{certificate.not_after:%Y-%m-%dT%H:%M:%SZ}",
        tls_version=tls.version() or "",
        client_certificate=has_certificate,
    )


def handshake_error(exc: Exception, host: str, port: int) -> ScaleoutError:
    """The error of a handshake that did not finish."""
    where = f"{host}:{port}"
    if isinstance(exc, ssl.SSLCertVerificationError):
        code, what, hint = "tls-server-untrusted", "its certificate is not of the configured CA", "Check --ca and the server."
        if exc.verify_code in _EXPIRED:
            code, what, hint = "tls-server-expired", "its certificate is not valid now", "Renew it; check this host's clock."
        elif exc.verify_code in _NAME:
            code, what, hint = "tls-server-name", f"its certificate is not for {host}", "Use the name in the certificate."
        return TransportError(f"cannot trust {where}: {what} ({exc.verify_message})", code=code, hint=hint)
    if isinstance(exc, ssl.SSLError) and _is_certificate_alert(exc):
        return refused_certificate(where, exc.reason or str(exc))
    if isinstance(exc, TimeoutError):
        return TransportError(f"cannot shake hands with {where}: no answer in time", code="tls-failed")
    reason = (exc.reason if isinstance(exc, ssl.SSLError) else None) or str(exc)
    if reason in _NO_TLS:
        return TransportError(
            f"cannot shake hands with {where}: it answered in plaintext, expected TLS 1.3",
            code="tls-required",
            hint="Name the server's TLS port, or have TLS switched on there; nothing was sent but the handshake.",
        )
    return TransportError(f"cannot shake hands with {where}: {reason}", code="tls-failed", hint="The server must speak TLS 1.3.")


def early_end_error(exc: Exception | None, where: str, has_certificate: bool) -> ScaleoutError:
    """The error of a stream that ended after the handshake and before the server's first byte."""
    if isinstance(exc, ssl.SSLError) and not _is_certificate_alert(exc) and "EOF" not in (exc.reason or "EOF"):
        return TransportError(f"cannot talk to {where}: {exc.reason}", code="tls-failed")
    detail = exc.reason if isinstance(exc, ssl.SSLError) and exc.reason else "it closed right after the handshake"
    return refused_certificate(where, detail if has_certificate else f"{detail}; no client certificate was sent")


def refused_certificate(where: str, detail: str) -> CredentialError:
    return CredentialError(
        f"cannot connect to {where}: the server refused this client ({detail})",
        code="client-certificate-refused",
        hint="Is the client certificate configured, in date, and of a CA that this server trusts?",
    )


def _is_certificate_alert(exc: ssl.SSLError) -> bool:
    reason = exc.reason or ""
    return "ALERT" in reason and any(word in reason for word in ("CERTIFICATE", "UNKNOWN_CA", "ACCESS_DENIED"))


def _load_authority(context: ssl.SSLContext, files: TlsFiles) -> None:
    if files.ca is None:
        if not files.system_store:
            raise ConfigError("cannot connect: no CA is configured", code="config-missing", hint="Give --ca FILE.")
        context.load_default_certs(ssl.Purpose.SERVER_AUTH)
        return
    try:
        context.load_verify_locations(cadata=_read_pem(files.ca).decode("ascii"))
    except (ssl.SSLError, ValueError) as exc:
        raise ConfigError(f"cannot use the CA file {_shown(files.ca)}: it holds no PEM certificate ({exc})") from exc
    if not context.get_ca_certs():
        raise ConfigError(f"cannot use the CA file {_shown(files.ca)}: no certificate in it is a CA's")


def _load_pair(context: ssl.SSLContext, certificate: Path, key: Path) -> None:
    _load_certificate(certificate)
    _read_pem(key)
    try:
        # A password callback keeps OpenSSL from asking on a terminal that a daemon does not have.
        context.load_cert_chain(certificate, key, password=lambda: b"")
    except (ssl.SSLError, ValueError) as exc:
        reason = (exc.reason if isinstance(exc, ssl.SSLError) else None) or "no PEM, or a key with a password"
        raise ConfigError(
            f"cannot use {_shown(certificate)} with {_shown(key)}: {reason}",
            code="client-certificate-invalid",
            hint="The key must be the certificate's own, in PEM without a password.",
        ) from exc


def _load_certificate(path: Path) -> CertificateFacts:
    try:
        return certificate_facts(first_of_pem(_read_pem(path)))
    except FormatError as exc:
        raise ConfigError(
            f"cannot use the client certificate {_shown(path)}: it is no PEM certificate", code="client-certificate-invalid"
        ) from exc


def _shown(path: Path) -> str:
    """The name of a file for people; of a memory file (handed.py) the one it was made with."""
    if path.parent != Path("/proc/self/fd"):
        return path.name
    return os.readlink(path).removeprefix("/memfd:").removesuffix(" (deleted)")


def _read_pem(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(MAX_PEM_BYTES)
    except OSError as exc:
        raise ConfigError(f"cannot read {path}: {exc.strerror}", code="config-missing", hint="Check path and mode.") from exc
