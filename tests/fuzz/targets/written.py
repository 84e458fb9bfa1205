# SPDX-License-Identifier: Apache-2.0
"""What people write: YAML files, ignore patterns, addresses."""

from __future__ import annotations

from pathlib import Path

from scaleoutd.agent.api import parse_origin
from scaleoutd.cli.initfile import parse_init_file
from scaleoutd.core import strictjson
from scaleoutd.core.ignore import IgnoreRules, parse_ignore_file
from scaleoutd.core.nodeconfig import load_config
from scaleoutd.core.policy import parse_policy, parse_policy_yaml
from scaleoutd.core.project import parse_project
from scaleoutd.core.strictyaml import load_yaml
from scaleoutd.errors import ConfigError
from tests.fuzz.target import Target, same

ROOT = Path(__file__).resolve().parents[3]
_PLACE = "x.yaml: line "


def _yaml(data: bytes) -> None:
    try:
        document = load_yaml(data, name="x.yaml", root="x")
    except ConfigError as exc:
        # Size and encoding have no line; all else points into the file.
        placed = exc.message.startswith(f"cannot read {_PLACE}") and ", column " in exc.message
        assert placed or "are read" in exc.message or "is not UTF-8" in exc.message, exc.message
        raise
    strictjson.canonical(document.value)
    for path, position in document.positions.items():
        assert position.line >= 1 and position.column >= 1 and path.startswith("x")


def _project(data: bytes) -> None:
    project = parse_project(data)
    for words in project.steps.values():
        assert words and all(isinstance(word, str) for word in words)


def _policy(data: bytes) -> None:
    policy = parse_policy_yaml(data)
    same(parse_policy(policy.canonical()), policy, "the policy as JSON")


def _node(data: bytes) -> None:
    """The main file, and after a line of dashes a drop-in."""
    files = data.split(b"\n=====\n", 2)
    loaded = load_config([(f"{index}.yaml", part) for index, part in enumerate(files)])
    parse_origin(loaded.config.api_url)
    strictjson.canonical([list(row[:2]) for row in loaded.rows()])


def _init_file(data: bytes) -> None:
    parse_init_file(data, "init.yaml")


def _ignore(data: bytes) -> None:
    rules = IgnoreRules(parse_ignore_file(data.decode("utf-8", "replace")))
    for path in ("a", "a/b.pyc", "é/x y", "x" * 200, "a/" * 60 + "a", "]", "[a", "a\\b"):
        rules.ignores(path, is_folder=path == "a")


def _address(data: bytes) -> None:
    origin = parse_origin(data.decode("utf-8", "replace"))
    same(parse_origin(str(origin)), origin, "the address written and read")


_YAML = [
    b"a: 1\nb:\n  - x\n  - 'y: z'\n  - {c: [true, null, ~], d: \"\\u00e9\\n\"}\ne: |\n  text\n  more\nf: >-\n  folded\n",
    b"a: &x [1]\nb: *x\n",
    b"a: !!int 3\n",
    b"a: 1\na: 2\n",
    b"? a\n: b\n",
    b"<<: {a: 1}\n",
    b"%YAML 1.1\n%TAG ! tag:x,2000:\n---\na: 1\n...\n",
    b"a: b: c\n",
    b"a:\n\t- b\n",
    b"---\na: 1\n---\nb: 1\n",
]
_PROJECT = b"""\
name: demo
python_env: env.yaml
entry_points:
  build: {command: python client/build.py}
  startup: {command: "bash -c 'a && b'"}
  train:
    command: python "client/train.py" --x 'a b'
  validate: {command: python client/validate.py}
"""
_NODE = b"""\
version: 1
api_url: https://combiner.example:8090/api
client: {id: node-1, name: Node 1}
tls:
  ca: /etc/ca.pem
  certificate: client.pem
  key: client.key
intervals: {poll_ms: 5s, backoff_limit_ms: 1m}
=====
tls: {system_store: true}
log: {level: DEBUG}
"""
_INIT = (
    b"client_id: 'c-1'\ndiscover_host: 'api.example'\ndiscover_port: 443\nname: n\nrefresh_token: 'abc.def.ghi'\ntoken: true\n"
)
_IGNORE = b"# c\n*.pyc\n!keep.pyc\n/build/\na/**/b\n[a-z]*[!0-9]?\n**/x\ny/**\n\\#z\ntrailing\\ \n"
_WORDS = (
    b"&a ", b"*a", b"!!str ", b"!<x> ", b"? ", b": ", b"- ", b"<<", b"---\n", b"...\n", b"%YAML 1.1\n", b"%TAG ! !\n", b"|2-\n",
    b">+\n", b"# ", b"\t", b"{", b"[", b"]", b"}", b", ", b"\"\\x41\"", b"\"\\U0010FFFF\"", b"\"\\ud800\"", b"''", b"\xc2\x85",
    b"\xe2\x80\xa8", b"true", b"~", b"0x1F", b"1_0", b"\r\n", b"\xef\xbb\xbf",
)  # fmt: skip
_CLASSES = (b"[", b"[!", b"]", b"--", b"&&", b"||", b"~~", b"[[", b"z-a", b"**", b"*?", b"\\", b"/", b"!", b"[[:alpha:]]")
_ADDRESSES = (b"https://", b"http://", b"[::1]", b":99999", b"@", b"?", b"#", b"/", b"%", b"\xe2\x84\x80")
_YAML_CODES = frozenset({"yaml-invalid"})

TARGETS = (
    Target("yaml", _yaml, lambda: _YAML, _YAML_CODES, _WORDS),
    Target("scaleout-yaml", _project, lambda: [_PROJECT, b"entry_points: {startup: startup.py}\n"], _YAML_CODES, _WORDS),
    Target(
        "policy-yaml",
        _policy,
        lambda: [(ROOT / "policy" / "policy.example.yaml").read_bytes()],
        _YAML_CODES,
        (*_WORDS, b"4GiB", b"15m", b"settings_schema: {required: [[1]]}\n"),
    ),
    Target("node-yaml", _node, lambda: [_NODE], frozenset({"yaml-invalid", "tls-required", "config-invalid"}), _WORDS),
    Target("init-file", _init_file, lambda: [_INIT], _YAML_CODES, _WORDS),
    Target("ignore-file", _ignore, lambda: [_IGNORE], frozenset({"manifest-invalid"}), _CLASSES),
    Target(
        "address",
        _address,
        lambda: [b"https://h.example:1/p/q", b"h.example", b"https://[::1]:8443"],
        frozenset({"tls-required", "config-invalid"}),
        _ADDRESSES,
    ),
)
