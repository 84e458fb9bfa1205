# SPDX-License-Identifier: Apache-2.0
"""The arrows of DESIGN.md sections 1 and 8: which room may import what.  A wall that nobody tests is a drawing."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from scaleoutd.errors import CODES

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "scaleoutd"

# What each part of the package may import of the others.
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "core": {"errors", "core"},
    "durable": {"errors"},
    "hostclock": {"core"},
    "hold": {"errors", "core", "durable"},
    "ipc": {"errors", "core", "ipc", ""},
    "proto": {"proto"},
    "agent": {"errors", "core", "durable", "hold", "ipc", "proto", "agent", ""},
    "runner": {"errors", "core", "durable", "hold", "hostclock", "ipc", "runner", ""},
    "ledger": {"errors", "core", "durable", "hostclock", "ipc", "ledger", ""},
    "step": {"errors", "core", "ipc", "step", ""},
    "devcombiner": {"errors", "core", "durable", "proto", "devcombiner", ""},
    "cli": {
        "errors",
        "core",
        "durable",
        "hold",
        "hostclock",
        "ipc",
        "agent",
        "runner",
        "ledger",
        "step",
        "devcombiner",
        "cli",
        "",
    },
}
# The step is slimmer than its row says: of core and ipc it takes only these modules.
STEP_MODULES = {
    "scaleoutd.core.devices",
    "scaleoutd.core.plan",
    "scaleoutd.core.records",
    "scaleoutd.core.strictjson",
    "scaleoutd.ipc.channel",
    "scaleoutd.ipc.packets",
    "scaleoutd.ipc.step",
}
# Third-party and sensitive modules, and where they may be imported.
WHERE: dict[str, set[str]] = {
    "grpc": {"agent", "devcombiner", "proto"},
    "google": {"agent", "devcombiner", "proto"},
    "ssl": {"agent", "devcombiner"},
    "http": {"agent", "devcombiner"},
    "ctypes": {"step"},
    "pyseccomp": set(),
    "yaml": {"core"},
    "cryptography": {"core", "ledger", "agent", "cli", "devcombiner"},
    "click": {"cli"},
    "pythonjsonlogger": {"agent", "cli"},
    "subprocess": {"cli"},
    "pickle": set(),
    "marshal": set(),
    "shelve": set(),
}
CORE_FORBIDDEN = {"os", "socket", "time", "random", "secrets", "pathlib", "io", "tempfile", "subprocess", "threading", "select"}
THIRD_PARTY = {"grpc", "google", "yaml", "cryptography", "click", "pythonjsonlogger", "pyseccomp"}


def modules() -> list[Path]:
    return sorted(
        path
        for path in PACKAGE.rglob("*.py")
        if not path.name.endswith("_pb2.py") and "template" not in path.relative_to(PACKAGE).parts
    )


def part_of(path: Path) -> str:
    relative = path.relative_to(PACKAGE)
    if len(relative.parts) > 1:
        return relative.parts[0]
    return "" if relative.stem == "__init__" else relative.stem


def imports(path: Path) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            yield node.lineno, node.module or ""
            for alias in node.names:
                yield node.lineno, f"{node.module}.{alias.name}"


def module_path(name: str) -> Path | None:
    base = ROOT / name.replace(".", "/")
    for candidate in (base.with_suffix(".py"), base / "__init__.py"):
        if candidate.exists():
            return candidate
    return None


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_arrows(path: Path) -> None:
    part = part_of(path)
    assert part == "" or part in ALLOWED, f"{path}: a part of the package that DESIGN.md does not know"
    for line, name in imports(path):
        top = name.split(".")[0]
        if top == "scaleoutd":
            target = module_path(name)
            if target is None:
                continue  # a name inside a module; the module itself was yielded before
            wanted = part_of(target)
            assert wanted in ALLOWED.get(part, set()), f"{path}:{line}: {part or 'package'} may not import {name}"
            if part == "step" and wanted in ("core", "ipc") and target.stem != "__init__":
                assert name in STEP_MODULES, f"{path}:{line}: the step may not import {name}"
        elif top in WHERE:
            assert part in WHERE[top], f"{path}:{line}: {top} may not be imported in {part or 'the package'}"
        if part == "core":
            assert top not in CORE_FORBIDDEN, f"{path}:{line}: core may not import {top}"
        if part == "step":
            assert top not in THIRD_PARTY, f"{path}:{line}: the step lives on the standard library"


@pytest.mark.parametrize("path", [p for p in modules() if part_of(p) == "core"], ids=lambda path: path.stem)
def test_core_opens_nothing(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in ("open", "exec", "eval", "compile", "__import__"), f"{path}:{node.lineno}"


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_the_audit_private_key_is_opened_in_the_ledger_only(path: Path) -> None:
    text = path.read_text()
    if part_of(path) in ("runner", "step"):
        assert "load_pem_private_key" not in text
    if part_of(path) not in ("ledger",):
        assert "epoch_key_path" not in text


def test_every_error_code_that_is_raised_is_registered() -> None:
    pattern = re.compile(r"""code\s*=\s*["']([a-z0-9-]+)["']""")
    for path in modules():
        if part_of(path) == "devcombiner":
            continue
        for match in pattern.finditer(path.read_text()):
            assert match.group(1) in CODES, f"{path}: code {match.group(1)!r} is not in errors.CODES"


def test_no_vague_module_names() -> None:
    vague = {"utils", "util", "helpers", "helper", "manager", "common", "misc", "tools"}
    assert not [path for path in modules() if path.stem in vague]


def test_files_are_short() -> None:
    too_long = {str(path.relative_to(ROOT)): count for path in modules() if (count := len(path.read_text().splitlines())) > 400}
    assert not too_long, f"split these: {too_long}"


def test_no_machine_paths_in_the_tree() -> None:
    pattern = re.compile("/" + r"work/(main|shared|brief|\.library)|/root/\.pyenv|/" + "opt/wheels")
    for folder in ("scaleoutd", "tests", "docs", "policy", "benchmarks", "tools", "packaging", "systemd", ".ci"):
        for path in (ROOT / folder).rglob("*"):
            if (
                path.is_file()
                and path.suffix in (".py", ".md", ".sh", ".yaml", ".json", ".txt", ".toml", "")
                and "__pycache__" not in path.parts
            ):
                text = path.read_text(errors="replace")
                assert not pattern.search(text), f"{path} names a path of one machine"
