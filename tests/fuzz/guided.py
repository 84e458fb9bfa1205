# SPDX-License-Identifier: Apache-2.0
"""The coverage-guided part, run by .venv-fuzz's interpreter: atheris over one target until the time is over or a promise breaks.

    python -m tests.fuzz.guided TARGET FOLDER libFuzzer-options…

Every module of the package is instrumented, and what it hands bytes to in Python: PyYAML, pickletools, shlex.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable

import atheris

with atheris.instrument_imports(include=["scaleoutd", "yaml", "pickletools", "shlex"]):
    from tests.fuzz.mutate import change_json, mutate
    from tests.fuzz.registry import TARGETS

from tests.fuzz.target import Target, limit_memory, outcome


def mutator(target: Target) -> Callable[[bytes, int, int], bytes]:
    """libFuzzer's own mutations, mixed with changes of the tree for JSON and with the target's words."""

    def change(data: bytes, max_size: int, seed: int) -> bytes:
        chance = random.Random(seed)
        kind = chance.random()
        if target.json and kind < 0.5:
            changed = change_json(data, chance)
            if changed is not None and len(changed) <= max_size:
                return changed
        if kind < 0.7:
            return mutate(target, data, chance, [data])[:max_size]
        return bytes(atheris.Mutate(data, max_size))

    return change


def main(arguments: list[str]) -> None:
    target = TARGETS[arguments[0]]
    limit_memory()

    def one(data: bytes) -> None:
        outcome(target, data)

    atheris.Setup([sys.argv[0], *arguments[1:]], one, custom_mutator=mutator(target))
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1:])
