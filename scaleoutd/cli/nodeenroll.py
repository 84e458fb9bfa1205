# SPDX-License-Identifier: Apache-2.0
"""`scaleoutctl enroll`: registers an installed node with an enrollment token, once.

    /etc/scaleoutd/identity/token           the refresh token that came, 0600, root's; a credential of the agent
    /etc/scaleoutd/enrolled.json            which enrollment token was redeemed (its SHA-256), where and when
    /etc/scaleoutd/scaleoutd.d/10-enrolled.yaml   the client id that the server gave, when it gave another one

The token is never on a command line: it comes from a file or from standard input.  A token is redeemed once; the same one again
changes nothing and contacts nobody, so configuration management may run this as often as it likes.
"""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from scaleoutd.agent.api import Api, Tokens, parse_origin
from scaleoutd.agent.nodefile import agent_config, read_node_config
from scaleoutd.agent.tls import Tls, TlsFiles
from scaleoutd.agent.tokens import claims_of, kind_of
from scaleoutd.cli.fileset import apply_changes, changes_of
from scaleoutd.cli.onrecord import note
from scaleoutd.cli.place import JSON_OPTION, ROOT_OPTION, Place, must_be_root
from scaleoutd.cli.terminal import escape, say
from scaleoutd.cli.token import read_token
from scaleoutd.core import records, strictjson
from scaleoutd.core.clock import utc_text
from scaleoutd.core.nodeconfig import NodeConfig
from scaleoutd.core.records import Natural, Sha256Hex
from scaleoutd.durable import read_state
from scaleoutd.errors import ConfigError, CredentialError

WOULD_CHANGE = 1
FOLDER = "etc/scaleoutd/identity"
TOKEN, RECORD = f"{FOLDER}/token", "etc/scaleoutd/enrolled.json"
DROP_IN = "etc/scaleoutd/scaleoutd.d/10-enrolled.yaml"


@dataclass(frozen=True)
class Enrolled:
    """What is known of the enrollment that was redeemed."""

    token_sha256: Sha256Hex
    api_url: str
    client_id: str
    at_ms: Natural


@click.command("enroll")
@click.option(
    "--token-file", type=click.Path(path_type=Path), metavar="FILE", help="file with the enrollment token, - for standard input"
)
@click.option("--check", is_flag=True, help="contact nobody; exit status 1 when this node is not enrolled, or with another token")
@click.option("--force", is_flag=True, help="redeem the token although the node is enrolled")
@click.option("--show-token", is_flag=True, help="say what the token is; contact nobody, change nothing")
@ROOT_OPTION
@JSON_OPTION
def enroll(token_file: Path | None, check: bool, force: bool, show_token: bool, root: Path, as_json: bool) -> int:
    """Register this node with an enrollment token.  The same token again changes nothing.

    \b
    Examples:
      sudo scaleoutctl enroll --token-file enrollment
      sudo scaleoutctl enroll --check
    """
    place = Place.of(root)
    token = read_token(None, token_file) if token_file is not None else ""
    if show_token:
        _show(token, as_json)
        return 0
    known = read_enrolled(place)
    loaded = read_node_config(place.etc)
    sha256 = hashlib.sha256(token.encode()).hexdigest() if token else known.token_sha256 if known else ""
    is_done = known is not None and known.token_sha256 == sha256 and known.api_url == loaded.config.api_url
    if is_done and not force and known is not None:
        _tell(known, False, as_json)
        return 0
    if check:
        _tell_not(as_json)
        return WOULD_CHANGE
    if not token:
        raise ConfigError("cannot enroll: no enrollment token is given", code="config-missing", hint="Give --token-file FILE.")
    if kind_of(token) != "enrollment":
        raise CredentialError("cannot enroll: the token is no enrollment token", code="token-invalid", hint="See --show-token.")
    if known is not None and not force:
        raise ConfigError(
            f"cannot enroll: this node is enrolled as {known.client_id} at {known.api_url}",
            hint="Use --force to enroll it anew; it then is another client for the server.",
        )
    must_be_root(place, "enroll the node")
    tokens = _redeem(place, loaded.config, token)
    enrolled = Enrolled(sha256, loaded.config.api_url, tokens.client_id, time.time_ns() // 1_000_000)
    _keep(place, loaded.config, tokens, enrolled)
    note(place, "enroll", [enrolled.client_id, enrolled.api_url])
    _tell(enrolled, True, as_json)
    return 0


def read_enrolled(place: Place) -> Enrolled | None:
    path = place.root / RECORD
    return read_state(
        path,
        lambda data: records.decode(Enrolled, strictjson.parse(data, max_bytes=64 * 1024, what="the enrollment"), "enrolled"),
        "Remove it and enroll again with a new token.",
    )


def _redeem(place: Place, config: NodeConfig, token: str) -> Tokens:
    """As the agent would: the same CA, the same certificate."""
    found = agent_config(config, place.identity, place.state / "agent")
    files = TlsFiles(
        ca=Path(found.api_ca or found.ca) if found.api_ca or found.ca else None,
        certificate=Path(found.cert) if found.cert else None,
        key=Path(found.key) if found.key else None,
        certificate_required=found.client_certificate == "required",
        system_store=found.system_store or (found.api_system_store and not found.api_ca),
    )
    return Api(parse_origin(config.api_url), Tls(files), scheme=found.auth_scheme).enroll(
        token, config.client.id, config.client.name
    )


def _keep(place: Place, config: NodeConfig, tokens: Tokens, enrolled: Enrolled) -> None:
    """The token exists once: it is durable before anything else is said."""
    files: dict[str, bytes | None] = {
        TOKEN: tokens.refresh_token.encode(),
        RECORD: strictjson.canonical(records.encode(enrolled)) + b"\n",
    }
    if config.client.id != tokens.client_id:
        files[DROP_IN] = (
            "# Written by `scaleoutctl enroll`: the client id that the server gave.\n"
            f"client:\n  id: {json.dumps(tokens.client_id)}\n"
        ).encode()
    apply_changes(changes_of(place.root, files, secret={TOKEN}))


def _show(token: str, as_json: bool) -> None:
    if not token:
        raise ConfigError("cannot show the token: none is given", code="config-missing", hint="Give --token-file FILE.")
    claims = claims_of(token)
    expires = claims.get("exp")
    told: dict[str, Any] = {"kind": kind_of(token)}
    told |= {key: claims[key] for key in ("iss", "sub", "client_id", "aud") if isinstance(claims.get(key), str)}
    if isinstance(expires, int | float) and not isinstance(expires, bool):
        told["expires"] = utc_text(int(expires * 1000))
    if as_json:
        click.echo(json.dumps(told))
        return
    for key, value in told.items():
        click.echo(escape(f"{key:<10} {value}"))


def _tell(enrolled: Enrolled, changed: bool, as_json: bool) -> None:
    if as_json:
        click.echo(
            json.dumps({"changed": changed, "enrolled": True, "client_id": enrolled.client_id, "api_url": enrolled.api_url})
        )
        return
    say(escape(f"{'enrolled' if changed else 'unchanged, enrolled'} as {enrolled.client_id} at {enrolled.api_url}"))


def _tell_not(as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({"changed": True, "enrolled": False}))
    else:
        say("this node is not enrolled, or with another token")
