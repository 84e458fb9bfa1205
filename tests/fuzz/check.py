# SPDX-License-Identifier: Apache-2.0
"""One target over its seeds, its kept corpus and a number of mutations; what `make test` runs, in a process of its own."""

from __future__ import annotations

import base64
import os
import sys
import time
import traceback
from collections import Counter

from tests.fuzz import corpora
from tests.fuzz.mutate import mutations
from tests.fuzz.registry import TARGETS
from tests.fuzz.target import Finding, Target, limit_memory, outcome

MUTATIONS = 2000


def check(target: Target, count: int = MUTATIONS) -> Counter[str]:
    """Outcomes by name; Finding with the input when a promise is broken or a seed is not accepted."""
    seeds = list(target.seeds())
    counts: Counter[str] = Counter()
    inputs = [b"", *seeds, *corpora.kept(target)]
    for data in (*inputs, *mutations(target, inputs, count)):
        try:
            first = outcome(target, data)
            if counts[first] < 3 and outcome(target, data) != first:
                raise Finding(f"{target.name}: the second outcome is another than {first}")
        except Finding as exc:
            raise Finding(f"{exc}\ninput in base64: {base64.b64encode(data).decode()}") from exc
        counts[first] += 1
    return counts


def main(names: list[str]) -> int:
    """For each name one line: the outcomes and the seconds of processor; ends with 1 after a finding."""
    chosen = [TARGETS[name] for name in names]
    limit_memory()
    for target in chosen:
        started = time.process_time()
        try:
            counts = check(target, MUTATIONS * int(os.environ.get("FUZZ_SCALE", "1")))
        except Finding as exc:
            traceback.print_exception(exc)
            print(exc)
            return 1
        told = ", ".join(f"{name} {count}" for name, count in counts.most_common())
        print(f"{target.name}: {told}; {time.process_time() - started:.2f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or list(TARGETS)))
