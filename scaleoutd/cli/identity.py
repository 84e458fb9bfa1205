# SPDX-License-Identifier: Apache-2.0
"""`scaleoutctl identity csr | install | show`: the node's client certificate and key.

    /etc/scaleoutd/identity/client.key           0600, root's; reaches the agent as a credential of systemd only
    /etc/scaleoutd/request/client.key            the key of a request that has no certificate yet; the old pair stays in use
    /etc/scaleoutd/identity/client.pem, ca.pem

The key is made on the node and never leaves it.  A pair is looked at before it is installed, all of it at once; when the running
agent refuses it nevertheless, the old one is put back.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from scaleoutd.cli.certificates import (
    Pair,
    belongs,
    check_authorities,
    check_pair,
    fingerprint,
    load_certificates,
    load_pair,
    make_key,
    make_request,
    not_after,
    not_before,
)
from scaleoutd.cli.control import reload_agent
from scaleoutd.cli.fileset import apply_changes, changes_of, put_back
from scaleoutd.cli.onrecord import note
from scaleoutd.cli.place import JSON_OPTION, ROOT_OPTION, Place, must_be_root
from scaleoutd.cli.terminal import escape, say, warn
from scaleoutd.durable import replace_file, storage_errors
from scaleoutd.errors import ConfigError, CredentialError, PeerError, ScaleoutError

WARN_DAYS = 30
EXPIRING, UNUSABLE, WOULD_CHANGE = 1, 2, 1
MAX_PEM_BYTES = 1024 * 1024
FOLDER, PENDING = "etc/scaleoutd/identity", "etc/scaleoutd/request/client.key"
FILE = click.Path(path_type=Path, dir_okay=False, exists=True)


@click.group("identity")
def identity() -> None:
    """The client certificate of this node.

    \b
    Example:
      sudo scaleoutctl identity csr --name ward-7 > ward-7.csr
      sudo scaleoutctl identity install ward-7.pem --ca ca.pem
    """


@identity.command("csr")
@click.option("-n", "--name", required=True, metavar="NAME", help="common name of the certificate")
@click.option("-o", "--out", type=click.Path(path_type=Path, dir_okay=False), help="file for the request  [standard output]")
@ROOT_OPTION
@JSON_OPTION
def identity_csr(name: str, out: Path | None, root: Path, as_json: bool) -> None:
    """Make a key on this node, once, and print a request for the site's CA.  The certificate in use stays in use.

    \b
    Example:
      sudo scaleoutctl identity csr --name ward-7 --out ward-7.csr
    """
    place = Place.of(root)
    must_be_root(place, "make a key")
    if not 1 <= len(name) <= 64 or not name.isprintable():
        raise click.UsageError("--name: expected 1 to 64 printable characters")
    pending = place.root / PENDING
    changed = not pending.exists()
    if changed:
        _make_folder(pending.parent)
        replace_file(pending, make_key(), mode=0o600)
    request = make_request(_read(pending), name)
    if out is not None:
        replace_file(out.absolute(), request, mode=0o644)
    if as_json:
        click.echo(json.dumps({"changed": changed, "key": str(pending), "request": request.decode()}))
        return
    if out is None:
        click.echo(request.decode(), nl=False)
    say(f"{'a new key' if changed else 'the key of the request before'}: {pending}")
    say("have the CA sign the request, then: scaleoutctl identity install CERTIFICATE --ca CA")


@identity.command("install")
@click.argument("certificate", type=FILE)
@click.option("--key", type=FILE, help="its key, when it was not made here")
@click.option("--ca", type=FILE, help="CA of the server; the one that is installed already, else")
@click.option("--issuer", type=FILE, help="CA of the client certificate, when it is another one")
@click.option("--check", is_flag=True, help="change nothing; exit status 1 when there is something to change")
@ROOT_OPTION
@JSON_OPTION
def identity_install(
    certificate: Path, key: Path | None, ca: Path | None, issuer: Path | None, check: bool, root: Path, as_json: bool
) -> int:
    """Install CERTIFICATE with its key and the CA, all at once.  A pair that cannot be used is refused, and the old one stays.

    A running agent takes it for connections from now on; none is cut.

    \b
    Examples:
      sudo scaleoutctl identity install ward-7.pem --ca ca.pem
      sudo scaleoutctl identity install new.pem --key new.key
    """
    place = Place.of(root)
    pem = _read(certificate)
    key_pem = _read(key) if key else _key_of(place, pem)
    ca_pem = _read(ca) if ca else _installed_ca(place)
    pair = load_pair(pem, key_pem)
    at = datetime.now(UTC).replace(tzinfo=None)
    authorities = load_certificates(ca_pem, "the CA file")
    check_authorities(authorities, at)
    check_pair(pair, load_certificates(_read(issuer), "the issuer's file") if issuer else authorities, at)
    files: dict[str, bytes | None] = {
        f"{FOLDER}/ca.pem": ca_pem,
        f"{FOLDER}/client.key": key_pem,
        f"{FOLDER}/client.pem": pem,
    }
    if belongs_to_pending(place, pem):
        files[PENDING] = None
    changes = changes_of(place.root, files, secret={f"{FOLDER}/client.key", PENDING})
    told = ""
    if changes and not check:
        must_be_root(place, "install the certificate")
        _make_folder(place.identity)
        apply_changes(changes)
        try:
            told = _hand_over(place)
        except ScaleoutError:
            put_back(changes)
            raise
        note(place, "identity-install", [pair.certificate.subject.rfc4514_string()[:256], fingerprint(pair.certificate)])
    if as_json:
        click.echo(json.dumps({"changed": bool(changes), "written": bool(changes) and not check, **_facts(pair)}))
    else:
        say(escape(f"{'unchanged' if not changes else 'would be installed' if check else 'installed'}: {_line(pair)}"))
        if told:
            say(escape(f"agent: {told}"))
    return WOULD_CHANGE if check and changes else 0


@identity.command("show")
@ROOT_OPTION
@JSON_OPTION
def identity_show(root: Path, as_json: bool) -> int:
    """Say whose certificate is installed and until when.  Exit status 1 in its last 30 days, 2 when it cannot be used.

    \b
    Example:
      scaleoutctl identity show
    """
    place = Place.of(root)
    at = datetime.now(UTC).replace(tzinfo=None)
    (first, *_) = load_certificates(_read(place.identity / "client.pem"), "the certificate")
    pair = Pair(first, (), b"")
    problem, status = "", 0
    try:
        problem = _problem(place, at)
    except ScaleoutError as exc:
        problem = exc.message
    days = (not_after(first) - at).days
    if problem:
        status = UNUSABLE
    elif days < WARN_DAYS:
        status, problem = EXPIRING, f"it ends in {days} days"
    if as_json:
        click.echo(json.dumps({**_facts(pair), "days_left": days, "problem": problem, "status": status}))
    else:
        click.echo(escape(_line(pair)))
        click.echo(f"fingerprint (SHA-256) {fingerprint(first)}")
        click.echo(escape(f"{days} days left"))
        if problem:
            warn(escape(problem))
    return status


def _problem(place: Place, at: datetime) -> str:
    """What keeps the installed pair from use; the key is looked at where this user may read it."""
    if not _readable(place.identity / "client.key"):
        return ""
    pair = load_pair(_read(place.identity / "client.pem"), _read(place.identity / "client.key"))
    mode = (place.identity / "client.key").stat().st_mode & 0o777
    if mode & 0o077:
        return f"expected that only root can read client.key, found mode {mode:04o}"
    if not not_before(pair.certificate) <= at <= not_after(pair.certificate):
        return f"it is not valid now ({_line(pair)})"
    return ""


def _readable(path: Path) -> bool:
    try:
        with path.open("rb"):
            return True
    except PermissionError:
        return False
    except FileNotFoundError:
        return True  # load_pair then says so


def _hand_over(place: Place) -> str:
    """To a running agent; "" when none runs.  CredentialError when it refuses the pair."""
    if not place.control("agent").exists():
        return ""
    try:
        return reload_agent(place).text
    except PeerError as exc:
        warn(f"the agent was not told: {exc.message}; it reads the new files when it starts")
        return ""


def _key_of(place: Place, certificate_pem: bytes) -> bytes:
    """The key made here that the certificate is for."""
    for path in (place.root / PENDING, place.identity / "client.key"):
        if path.exists() and belongs(certificate_pem, _read(path)):
            return _read(path)
    raise CredentialError(
        "cannot use the client certificate: it is for no key of this node",
        code="client-certificate-invalid",
        hint="Give its key with --key, or make a request here: `scaleoutctl identity csr`.",
    )


def belongs_to_pending(place: Place, certificate_pem: bytes) -> bool:
    path = place.root / PENDING
    return path.exists() and belongs(certificate_pem, _read(path))


def _installed_ca(place: Place) -> bytes:
    path = place.identity / "ca.pem"
    if not path.exists():
        raise ConfigError("cannot install the certificate: no CA is installed", code="config-missing", hint="Give it: --ca FILE.")
    return _read(path)


def _make_folder(folder: Path) -> None:
    """Root's alone, and below one that everybody may read."""
    with storage_errors(f"make {folder}"):
        folder.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)


def _read(path: Path) -> bytes:
    with storage_errors(f"read {path}"), path.open("rb") as file:
        data = file.read(MAX_PEM_BYTES + 1)
    if len(data) > MAX_PEM_BYTES:
        raise ConfigError(f"cannot read {path}: it is larger than {MAX_PEM_BYTES} bytes")
    return data


def _facts(pair: Pair) -> dict[str, Any]:
    certificate = pair.certificate
    return {
        "subject": certificate.subject.rfc4514_string(),
        "issuer": certificate.issuer.rfc4514_string(),
        "serial": f"{certificate.serial_number:x}",
        "not_before": f"{not_before(certificate):%Y-%m-%dT%H:%M:%SZ}",
        "not_after": f"{not_after(certificate):%Y-%m-%dT%H:%M:%SZ}",
        "fingerprint_sha256": fingerprint(certificate),
    }


def _line(pair: Pair) -> str:
    facts = _facts(pair)
    return f"{facts['subject']}, issued by {facts['issuer']}, until {facts['not_after']}"
