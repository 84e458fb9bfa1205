# SPDX-License-Identifier: Apache-2.0
"""scaleoutd.yaml and its drop-ins: every wrong file is refused where it is wrong, and every value knows where it came from."""

from __future__ import annotations

from pathlib import Path

import pytest

from scaleoutd.agent.nodefile import agent_config, load_agent_config
from scaleoutd.core.nodeconfig import LoadedConfig, load_config, parse_milliseconds
from scaleoutd.errors import ConfigError

MINIMAL = "version: 1\napi_url: https://api.example.org\n"


def load(*texts: str) -> LoadedConfig:
    return load_config([(f"{number}.yaml", text.encode()) for number, text in enumerate(texts)])


def test_the_smallest_file() -> None:
    config = load(MINIMAL).config
    assert config.tls.client_certificate == "required" and config.tls.ca == "ca.pem" and config.log.format == "json"
    assert not config.tls.system_store


@pytest.mark.parametrize(
    ("text", "where", "what"),
    [
        ("version: 1\napi_url: https://a\nclinet: {}\n", "line 3, column 1", "client"),
        ("version: 1\napi_url: https://a\ntls:\n  cert: x\n", "line 4, column 3", "tls.cert"),
        ("version: 1\napi_url: https://a\nversion: 1\n", "line 3, column 1", "twice"),
        ("version: 1\napi_url: http://a\n", "line 2, column", "https"),
        ("version: 2\napi_url: https://a\n", "line 1, column", "version"),
        ("version: 1\napi_url: https://u@a\n", "line 2, column", "user"),
        ("version: 1\napi_url: https://a\nlog: {format: xml}\n", "line 3, column 7", "'json', 'text'"),
        ("version: 1\napi_url: https://a\nintervals: {poll_ms: soon}\n", "line 3, column 13", "interval"),
        ("version: 1\napi_url: https://a\nintervals: {poll_ms: 10ms}\n", "line 3, column 13", "50"),
        ("version: 1\napi_url: https://a\nintervals: {backoff_ms: 2m, backoff_limit_ms: 1m}\n", "line 3", "backoff_limit_ms"),
        ("version: 1\napi_url: https://a\ntls: {key: ''}\n", "line 3", "together"),
        ("version: 1\napi_url: https://a\ntls: {key: '', certificate: ''}\n", "line 3", "required"),
        ("version: 1\napi_url: https://a\ntls: {ca: ''}\n", "line 3", "no CA"),
        ("version: 1\napi_url: https://a\ntls: {ca: ../ca.pem}\n", "line 3", "tls.ca"),
        ("version: 1\napi_url: https://a\ntoken: eyJhbGciOiJIUzI1NiJ9/x\n", "line 3", "token"),
        ("version: 1\napi_url: https://a\ntls: true\n", "line 3", "object"),
        ("version: 1\napi_url: https://a\ncombiner: a\n", "line 3", "combiner"),
        ("version: 1\n", "line 1", "api_url is missing"),
        ("version: 1\napi_url: &x https://a\n", "line 2", "anchor"),
    ],
)
def test_a_wrong_file_is_refused_where_it_is_wrong(text: str, where: str, what: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(text)
    assert caught.value.code == "yaml-invalid"
    assert "0.yaml" in caught.value.message and where in caught.value.message, caught.value.message
    assert what in caught.value.message + caught.value.hint


def test_the_nearest_key_is_named() -> None:
    with pytest.raises(ConfigError) as caught:
        load(MINIMAL + "preferred_combinr: x\n")
    assert caught.value.hint == "Did you mean preferred_combiner?"


def test_a_drop_in_counts_and_is_named_as_the_origin() -> None:
    loaded = load(MINIMAL + "tls:\n  ca: /a\n  api_ca: /b\n", "tls:\n  ca: /c\nlog: {level: DEBUG}\n")
    assert (loaded.config.tls.ca, loaded.config.tls.api_ca, loaded.config.log.level) == ("/c", "/b", "DEBUG")
    rows = {path: (value, str(origin)) for path, value, origin in loaded.rows()}
    assert rows["tls.ca"] == ("/c", "1.yaml:2:3")
    assert rows["tls.api_ca"] == ("/b", "0.yaml:5:3")
    assert rows["api_url"][1] == "0.yaml:2:1"
    assert rows["log.format"] == ("json", "default")


def test_a_wrong_drop_in_is_blamed_and_not_the_main_file() -> None:
    with pytest.raises(ConfigError, match=r"1\.yaml: line 2, column 3"):
        load(MINIMAL, "tls:\n  cq: /c\n")
    with pytest.raises(ConfigError, match=r"1\.yaml: line 1, column"):
        load(MINIMAL, "tls: {key: ''}\n")


def test_intervals() -> None:
    assert [parse_milliseconds(text) for text in ("500", "500ms", "5s", "2 m", "1h")] == [500, 500, 5000, 120_000, 3_600_000]


def test_credentials_reach_the_agent_by_name_or_by_path(tmp_path: Path) -> None:
    etc, credentials = tmp_path / "etc", tmp_path / "credentials"
    etc.mkdir()
    credentials.mkdir()
    (etc / "scaleoutd.yaml").write_text(MINIMAL + f"tls: {{ca: {tmp_path}/own-ca.pem}}\n")
    (tmp_path / "own-ca.pem").write_text("x")
    for name, text in (("client.pem", "c"), ("client.key", "k"), ("token", "a.b.c\n")):
        (credentials / name).write_text(text)
    config = load_agent_config(credentials, tmp_path / "state", etc)
    assert (config.ca, config.cert, config.key) == (
        str(tmp_path / "own-ca.pem"),
        str(credentials / "client.pem"),
        str(credentials / "client.key"),
    )
    assert config.token == "a.b.c" and config.state_dir == str(tmp_path / "state")
    assert "a.b.c" not in repr(config)


def test_a_credential_that_is_missing_or_empty_is_none(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("")
    config = agent_config(load(MINIMAL).config, tmp_path, tmp_path)
    assert (config.ca, config.cert, config.key, config.token) == ("", "", "", "")
    assert config.client_certificate == "required"  # so that the agent refuses, and does not go without


def test_without_a_certificate_only_where_the_policy_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "scaleoutd.yaml").write_text(MINIMAL + "tls: {client_certificate: none}\n")
    for value in ("", "required"):
        monkeypatch.setenv("SCALEOUTD_CLIENT_CERTIFICATE", value)
        with pytest.raises(ConfigError) as caught:
            load_agent_config(None, tmp_path, tmp_path)
        assert caught.value.code == "client-certificate-missing"
    monkeypatch.setenv("SCALEOUTD_CLIENT_CERTIFICATE", "none")  # as `policy apply` writes it into the unit
    assert load_agent_config(None, tmp_path, tmp_path).client_certificate == "none"


def test_no_file_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not there") as caught:
        load_agent_config(None, tmp_path, tmp_path)
    assert caught.value.code == "config-missing" and "config init" in caught.value.hint
