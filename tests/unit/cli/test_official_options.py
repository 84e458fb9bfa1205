# SPDX-License-Identifier: Apache-2.0
"""`client start` with the official client's flags, variables, init file and token cache, settled into values."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import click
import pytest

from scaleoutd.agent.tokencache import read_tokens, write_tokens
from scaleoutd.cli.initfile import read_init_file, write_init_file
from scaleoutd.cli.official import api_address, check_variables, read_environment
from scaleoutd.cli.scaleoutd import start
from scaleoutd.cli.startoptions import StartOptions, settle
from scaleoutd.cli.token import read_token
from scaleoutd.core.policy import development_policy
from scaleoutd.errors import ConfigError


def settled(arguments: list[str], environment: dict[str, str] | None = None, token: str = "") -> StartOptions:
    """What click makes of `arguments`, settled."""
    context = start.make_context("start", ["--api-url", "https://api.example.org", *arguments])
    given: dict[str, Any] = dict(context.params)
    for name in ("token_fd", "token_file"):
        given.pop(name)
    token = given.pop("token") or token
    data_sets = given.pop("data_sets")
    return settle(given, token=token, data_sets=data_sets, environment=environment or {"HOME": "/nonexistent"})


# --- the API's address ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "port", "prefix", "expected"),
    [
        ("api.example.org", "", "", "https://api.example.org"),
        ("localhost", "", "", "https://localhost"),  # the official client takes http here
        ("127.0.0.1:8092", "", "", "https://127.0.0.1:8092"),
        ("https://api.example.org/", "443", "", "https://api.example.org:443"),
        ("https://api.example.org:1", "2", "edge", "https://api.example.org:2/edge"),
        ("https://api.example.org/a/", "", "b", "https://api.example.org/a/b"),
        ("[::1]:8092", "", "", "https://[::1]:8092"),
    ],
)
def test_an_address_without_a_scheme_is_https_never_http(url: str, port: str, prefix: str, expected: str) -> None:
    assert api_address(url, port, prefix) == expected


@pytest.mark.parametrize(("url", "port"), [("https://", ""), ("https://h:x", ""), ("https://h", "0"), ("https://h", "70000")])
def test_an_address_that_cannot_be_is_refused(url: str, port: str) -> None:
    with pytest.raises(ConfigError):
        api_address(url, port)


def test_a_plain_http_address_keeps_its_scheme_so_that_the_agent_refuses_it() -> None:
    assert api_address("http://localhost") == "http://localhost"


# --- flags and variables --------------------------------------------------------------------------------------------


def test_every_spelling_of_the_official_command_line_is_taken(tmp_path: Path) -> None:
    init = tmp_path / "i.yaml"
    init.write_text("name: other\n")
    options = settled(
        ["-p", "8443", "-n", "ward", "-i", "id-1", "-c", "comb", "--combiner", "h", "--combiner-port", "12", "-hp", "numpyhelper",
         "-in", str(init), "--dispatcher", "--disable-managed-env", "--local-package", "--log-level", "ERROR"],
        token="t",
    )  # fmt: skip
    assert (options.api_url, options.name, options.client_id) == ("https://api.example.org:8443", "ward", "id-1")
    assert (options.preferred_combiner, options.combiner, options.log_level) == ("comb", "h:12", "ERROR")
    assert options.notices == ()


@pytest.mark.parametrize("flag", [["-va", "true"], ["-tr", "false"]])
def test_a_flag_without_effect_is_told(flag: list[str]) -> None:
    assert any("has no effect" in line for line in settled(flag).notices)


@pytest.mark.parametrize("flag", [["--remote-package"], ["--remote-package", "name"]])
def test_a_remote_package_is_refused_with_what_to_use_instead(flag: list[str]) -> None:
    with pytest.raises(ConfigError) as refused:
        settled(flag)
    assert "--project" in refused.value.hint and "no code is taken from a server" in refused.value.message


def test_switching_verification_off_is_refused_with_what_to_use_instead() -> None:
    with pytest.raises(ConfigError) as refused:
        check_variables({"SCALEOUT_CONNECT_API_SECURE": "false"})
    assert "--ca" in refused.value.hint
    assert check_variables({"SCALEOUT_CONNECT_API_SECURE": "True"}) == []


def test_a_variable_that_says_what_holds_anyway_needs_no_word() -> None:
    quiet = {"SCALEOUT_GRPC_SECURE": "true", "SCALEOUT_CLIENT_SEND_TELEMETRY": "false", "SCALEOUT_HOME_DIR": "/x"}
    assert check_variables(quiet) == []
    assert "no plaintext" in check_variables({"SCALEOUT_GRPC_SECURE": "false"})[0]


def test_an_unknown_variable_is_told_by_its_name_and_not_by_its_value() -> None:
    told = check_variables({"SCALEOUT_AUTH_TOKENS": "secret", "SCALEOUTD_X": "ours"})
    assert told == ["SCALEOUT_AUTH_TOKENS has no effect: no such variable is known; did you mean SCALEOUT_AUTH_TOKEN?"]


def test_honoured_variables_reach_the_options(tmp_path: Path) -> None:
    options = settled(
        [],
        {
            "HOME": str(tmp_path),
            "SCALEOUT_CLIENT_TASK_POLLING_INTERVAL": "2",
            "SCALEOUT_CHECK_COMPATIBILITY": "false",
            "SCALEOUT_CLIENT_STATUS_REPORTING": "false",
            "SCALEOUT_AUTH_SCHEME": "Token",
            "SCALEOUT_CUSTOM_URL_PREFIX": "/edge/",
            "SCALEOUT_GRPC_ROOT_CERT_PATH": "/etc/combiner.pem",
            "REQUESTS_CA_BUNDLE": "/etc/api.pem",
            "SCALEOUT_CLIENT_COMPUTE_LOCK": "/tmp/lock",
        },
    )
    assert (options.poll_interval_ms, options.check_compatibility, options.status_reporting) == (2000, False, False)
    assert (options.auth_scheme, options.api_url) == ("Token", "https://api.example.org/edge")
    assert (options.ca, options.api_ca, options.compute_lock) == ("/etc/combiner.pem", "/etc/api.pem", "/tmp/lock")
    assert options.token_cache_dir == f"{tmp_path}/.scaleout/tokens"
    assert settled(["--poll-interval", "7"], {"SCALEOUT_CLIENT_TASK_POLLING_INTERVAL": "2"}).poll_interval_ms == 7000


@pytest.mark.parametrize("value", ["0", "x", "-1", "nan"])
def test_a_polling_interval_that_cannot_be_is_refused(value: str) -> None:
    with pytest.raises(ConfigError):
        read_environment({"SCALEOUT_CLIENT_TASK_POLLING_INTERVAL": value})


def test_our_ca_beats_the_variables_for_both() -> None:
    options = settled(["--ca", "/etc/own.pem"], {"SCALEOUT_GRPC_ROOT_CERT_PATH": "/x", "REQUESTS_CA_BUNDLE": "/y"})
    assert (options.ca, options.api_ca) == ("/etc/own.pem", "")


@pytest.mark.parametrize(
    "flags", [["-i", "../x"], ["--combiner", "h"], ["--combiner", "h/", "--combiner-port", "1"], ["-hp", "x"]]
)
def test_a_value_that_cannot_be_is_refused_before_anything_starts(flags: list[str]) -> None:
    with pytest.raises(ConfigError):
        settled(flags)


def test_no_address_at_all_is_refused_with_the_flag_to_give() -> None:
    context = start.make_context("start", [])
    given = {key: value for key, value in context.params.items() if key not in ("token", "token_fd", "token_file", "data_sets")}
    with pytest.raises(ConfigError, match="no API address"):
        settle(given, token="", data_sets=(), environment={})


def test_an_unknown_flag_is_a_usage_error() -> None:
    with pytest.raises(click.UsageError):
        start.make_context("start", ["--no-such-flag"])


# --- credentials, in their order ------------------------------------------------------------------------------------


def cache(folder: Path, client_id: str, token: str) -> Path:
    write_tokens(folder, client_id, access_token="a", refresh_token=token, expires_at_s=2_000_000_000, now_s=1.0)
    return folder / f"{client_id}.json"


def init_file(folder: Path, **keys: str) -> Path:
    path = folder / "client.yaml"
    path.write_text("".join(f"{key}: {value}\n" for key, value in keys.items()))
    path.chmod(0o600)
    return path


def test_flag_beats_cache_beats_init_file(tmp_path: Path) -> None:
    environment = {"SCALEOUT_HOME_DIR": str(tmp_path)}
    folder = tmp_path / ".scaleout/tokens"
    init = init_file(tmp_path, client_id="ward", refresh_token="from-init")
    arguments = ["--init", str(init)]
    assert settled(arguments, environment).token == "from-init"
    cache(folder, "ward", "from-cache")
    assert settled(arguments, environment).token == "from-cache"
    assert settled([*arguments, "--token", "from-flag"], environment).token == "from-flag"
    assert settled(arguments, {**environment, "SCALEOUT_PERSIST_TOKENS": "no"}).token == "from-init"
    assert settled(arguments, {**environment, "SCALEOUT_TOKEN_CACHE_DIR": str(tmp_path / "else")}).token == "from-init"


def test_the_cache_is_private_whole_and_where_the_official_client_looks(tmp_path: Path) -> None:
    path = cache(tmp_path / "tokens", "ward", "r")
    assert path.stat().st_mode & 0o777 == 0o600 and path.parent.stat().st_mode & 0o777 == 0o700
    value = json.loads(path.read_text())
    assert sorted(value) == ["access_token", "expires_at", "refresh_token", "updated_at"]
    assert value["expires_at"].startswith("2033-05-18T03:33:20+00:00")
    assert [entry.name for entry in path.parent.iterdir()] == ["ward.json"]


def test_a_client_id_of_a_server_cannot_leave_the_cache(tmp_path: Path) -> None:
    write_tokens(tmp_path / "t", "../evil", access_token="a", refresh_token="r", expires_at_s=0, now_s=0.0)
    assert not (tmp_path / "evil.json").exists() and not (tmp_path / "t").exists()


def test_a_damaged_cache_is_named_and_a_readable_one_is_told(tmp_path: Path) -> None:
    path = cache(tmp_path, "ward", "r")
    path.chmod(0o644)
    found = read_tokens(tmp_path, "ward")
    assert found is not None and found.mode == 0o644
    environment = {"SCALEOUT_TOKEN_CACHE_DIR": str(tmp_path)}
    assert any("chmod 600" in line for line in settled(["-i", "ward"], environment).notices)
    path.write_text("{")
    with pytest.raises(ConfigError, match=r"ward\.json"):
        settled(["-i", "ward"], environment)


def test_what_enroll_writes_start_reads(tmp_path: Path) -> None:
    path = write_init_file(tmp_path, client_id="c-1", api_url="https://api", name="it's: ward", refresh_token="a.b.c")
    assert path.name == "c-1.yaml" and path.stat().st_mode & 0o777 == 0o600
    found, told = read_init_file(path)
    assert (found.client_id, found.url, found.name, found.refresh_token) == ("c-1", "https://api", "it's: ward", "a.b.c")
    assert told == []


def test_an_init_file_of_the_official_client_is_taken_and_its_mode_told(tmp_path: Path) -> None:
    path = init_file(tmp_path, discover_host="api.x", discover_port="8092", refresh_token="r", validator="true")
    path.chmod(0o644)
    found, told = read_init_file(path)
    assert (found.url, found.port, found.validator) == ("api.x", "8092", "true")
    assert "chmod 600" in told[0]


def test_an_unknown_key_of_an_init_file_is_named_with_line_and_nearest(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="line 2") as refused:
        read_init_file(init_file(tmp_path, name="x", refesh_token="y"))
    assert "refresh_token" in refused.value.hint


def test_a_token_that_is_no_text_is_refused_as_a_token_not_as_a_bug(tmp_path: Path) -> None:
    fd = os.memfd_create("t", 0)
    os.write(fd, b"\xff\xfe")
    os.lseek(fd, 0, 0)
    assert "\ufffd" in read_token(fd, None)


def test_no_repr_shows_a_token(tmp_path: Path) -> None:
    options = settled([], token="SECRET")
    found, _ = read_init_file(init_file(tmp_path, refresh_token="SECRET"))
    assert "SECRET" not in repr(options) + repr(found)


def test_a_development_policy_is_what_the_helper_flag_widens() -> None:
    assert "raw" not in development_policy("/p", "/usr/bin/python3", {}, "p").model_formats
