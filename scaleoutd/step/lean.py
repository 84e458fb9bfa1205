# SPDX-License-Identifier: Apache-2.0
"""Called by the programs of this room before they import it: what the standard library loads and a launcher never uses.

dataclasses imports inspect for a text that it writes into classes without a docstring, and with it come ast, dis, tokenize and
linecache; it imports copy for asdict; socket imports selectors for sendfile.  A stand-in has each name until an attribute of it
is asked for; then the real module takes its place, so whoever does need it has it (dataclasses of Python 3.13 do need inspect).
So every dataclass that a launcher loads has a docstring.

Of pickle a launcher reads the list of opcodes (torchzip.py).  The explanations in it, and the pickler and unpickler in Python,
leave their room to what is imported next.  Together it is 1.4 of 15 MiB in every launcher.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

NAMES = ("inspect", "copy", "selectors")


def trim() -> None:
    """For a process that becomes a launcher or a template, and for no other."""
    for name in NAMES:
        if name not in sys.modules:
            sys.modules[name] = stand_in(name)
    pickle, pickletools = import_module("pickle"), import_module("pickletools")
    for opcode in pickletools.opcodes:
        opcode.doc = ""
    for name in ("_Pickler", "_Unpickler"):
        vars(pickle).pop(name, None)


def stand_in(name: str) -> ModuleType:
    """A module that loads the real one when it is asked for anything."""
    module = ModuleType(name)

    def load(attribute: str) -> Any:
        if sys.modules.get(name) is module:
            del sys.modules[name]
        return getattr(import_module(name), attribute)

    module.__dict__["__getattr__"] = load  # PEP 562
    return module
