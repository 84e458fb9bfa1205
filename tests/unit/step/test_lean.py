# SPDX-License-Identifier: Apache-2.0
"""What a launcher does without: modules of the standard library that nothing in it uses, and the way back to each."""

from __future__ import annotations

import subprocess

import pytest

from tests.step_client import PROJECT, PYTHON

LOADED = (
    f"import sys; sys.path.insert(0, {str(PROJECT)!r}); from scaleoutd.step.lean import trim; trim();"
    " import scaleoutd.step.launcher; "
)


def told(code: str) -> str:
    return subprocess.run([PYTHON, "-I", "-S", "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def test_a_launcher_has_no_module_for_looking_at_source_text() -> None:
    unused = "{'ast', 'dis', 'tokenize', 'linecache', 'weakref', 'termios'} & set(sys.modules)"
    if told("import sys; print(sys.version_info >= (3, 13))") == "True":
        unused = "{'weakref', 'termios'} & set(sys.modules)"  # dataclasses use inspect there
    assert told(LOADED + f"print({unused})") == "set()"
    # Control: without the stand-ins they come with what the launcher imports.
    assert "weakref" in told("import sys, dataclasses, socket; print({'weakref'} & set(sys.modules))")


@pytest.mark.parametrize(
    ("name", "use"),
    [
        ("inspect", "m.signature(lambda a: 1)"),
        ("copy", "m.deepcopy({'a': [1]})"),
        ("selectors", "m.EVENT_READ"),
    ],
)
def test_who_asks_a_stand_in_gets_the_real_module(name: str, use: str) -> None:
    asked = f"import {name} as m; print({use}); import {name}; print({name}.__file__)"
    answer, file = told(LOADED + asked).splitlines()
    assert answer == told(f"import {name} as m; print({use})").splitlines()[0]
    assert file.endswith(f"{name}.py")


def test_what_is_no_attribute_of_the_real_module_is_none_of_the_stand_in() -> None:
    assert told(LOADED + "import inspect; print(hasattr(inspect, 'no_such_name'))") == "False"
