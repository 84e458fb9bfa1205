# SPDX-License-Identifier: Apache-2.0
"""`scaleoutd client enroll`: redeems an enrollment token once, and keeps what came where both clients find it.

Options and output are the official client's: the client id alone on standard output, `<client_id>.yaml` for `start --init`, the
tokens in its cache.  The YAML is 0600 here.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import click

from scaleoutd.agent.api import Api, Tokens, parse_origin
from scaleoutd.agent.tls import Tls, TlsFiles
from scaleoutd.agent.tokencache import cache_path, write_tokens
from scaleoutd.agent.tokens import claims_of, kind_of
from scaleoutd.cli.initfile import write_init_file
from scaleoutd.cli.official import Environment, api_address, check_variables, read_environment
from scaleoutd.cli.terminal import escape, say, warn
from scaleoutd.cli.token import read_token
from scaleoutd.errors import ConfigError, CredentialError, ScaleoutError

FILE = click.Path(path_type=Path, dir_okay=False)
FOLDER = click.Path(path_type=Path, file_okay=False)


@click.command()
@click.option("--enrollment-token", metavar="TOKEN", help="enrollment token; taken off the command line at once")
@click.option("--enrollment-token-fd", type=int, hidden=True)
@click.option("--token-file", type=click.Path(path_type=Path), metavar="FILE", help="file with it, - for standard input")
@click.option("-u", "--api-url", required=True, metavar="URL", help="address of the API; https, also without a scheme")
@click.option("-n", "--name", default="", help="label of this client on the server")
@click.option("-p", "--config-dir", type=FOLDER, default=".", help="where <client_id>.yaml goes  [.]")
@click.option("--client-id", default="", metavar="ID", help="client id to ask for")
@click.option("--no-config", is_flag=True, help="write no YAML file")
@click.option("--ca", type=FILE, help="the only CA that is trusted, PEM")
@click.option("--cert", type=FILE, help="client certificate, PEM")
@click.option("--key", type=FILE, help="its private key, PEM")
def enroll(
    enrollment_token: str | None,
    enrollment_token_fd: int | None,
    token_file: Path | None,
    api_url: str,
    name: str,
    config_dir: Path,
    client_id: str,
    no_config: bool,
    ca: Path | None,
    cert: Path | None,
    key: Path | None,
) -> int:
    """Register this client with an enrollment token; prints the client id.

    \b
    Example:
      ID=$(scaleoutd client enroll --token-file enrollment --api-url https://api.example.org)
      scaleoutd client start --init "$ID.yaml"
    """
    os.umask(0o077)
    for line in check_variables(os.environ):
        warn(line)
    found = read_environment(os.environ)
    token = enrollment_token or read_token(enrollment_token_fd, token_file)
    if not token:
        raise ConfigError("cannot enroll: no enrollment token is given", code="config-missing", hint="Give --token-file FILE.")
    if kind_of(token) != "enrollment":
        raise CredentialError(
            "cannot enroll: the token is no enrollment token",
            code="token-invalid",
            hint="A refresh token needs no enrolling: `scaleoutd client start --token-file FILE`.",
        )
    address = api_address(api_url, prefix=found.url_prefix)
    files = TlsFiles(
        ca=ca or (Path(found.api_ca) if found.api_ca else None),
        certificate=cert,
        key=key,
        certificate_required=False,
        system_store=True,
    )
    api = Api(parse_origin(address), Tls(files), scheme=found.auth_scheme)
    tokens = api.enroll(token, client_id, name)
    say(f"Enrolled successfully. client_id: {escape(tokens.client_id)}")
    keep_tokens(tokens, found)
    if no_config:
        say(f"Start with: scaleoutd client start --client-id {escape(tokens.client_id)} --api-url {address}")
    else:
        write_config(tokens, config_dir, address, name)
    click.echo(escape(tokens.client_id))
    return 0


def keep_tokens(tokens: Tokens, found: Environment) -> None:
    """In the official client's cache, unless its variable says otherwise.  The tokens exist once: a failure here is no end."""
    if not found.persist_tokens or not found.token_cache_dir:
        return
    try:
        write_tokens(
            Path(found.token_cache_dir),
            tokens.client_id,
            access_token=tokens.access_token,
            refresh_token=tokens.refresh_token,
            expires_at_s=_expiry(tokens.access_token),
            now_s=time.time(),
        )
    except ScaleoutError as exc:
        warn(f"{exc.message}; the token is in the YAML file alone")


def write_config(tokens: Tokens, folder: Path, address: str, name: str) -> None:
    if cache_path(folder, tokens.client_id) is None:
        raise CredentialError(
            f"cannot write the config file: the client id of the server, {escape(tokens.client_id[:64])!r}, is no file name",
            code="token-invalid",
            hint="Ask for one: --client-id ID.",
        )
    path = write_init_file(
        folder.absolute(),
        client_id=tokens.client_id,
        api_url=address,
        name=name or f"client-{tokens.client_id[:8]}",
        refresh_token=tokens.refresh_token,
    )
    say(f"Config written to: {path}")
    say(f"Start with: scaleoutd client start --init {path}")


def _expiry(access_token: str) -> int:
    try:
        expires = claims_of(access_token).get("exp")
    except CredentialError:
        return 0
    return int(expires) if isinstance(expires, int | float) and not isinstance(expires, bool) else 0
