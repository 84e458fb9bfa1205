# SPDX-License-Identifier: Apache-2.0
"""What of a step's results may leave, and how results are told to the trail.

The gate's facts are claims of a child that read the step's bytes; here the policy decides over them.  Nothing here parses a
model.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from decimal import Decimal
from typing import Any

from scaleoutd.core.grant import Grant
from scaleoutd.core.plan import Limits, StepResult
from scaleoutd.core.policy import NumberRange
from scaleoutd.errors import OutputError

MAX_BODY_BYTES = 32 * 1024
MAX_KEY_CHARS = 128
# Names of withheld keys go to the agent's log and on record: a way out too, and wide open were it not bounded.
MAX_NAMED = 32

CAUSES: Mapping[str, str] = {
    "limit-wall-clock": "it ran longer than limits.wall_clock_s",
    "limit-cpu": "it used more processor time than limits.cpu_s",
    "limit-memory": "it used more memory than limits.memory_bytes",
    "limit-processes": "it had more processes than limits.processes",
    "limit-file-size": "it wrote a file larger than limits.file_size_bytes",
    "limit-scratch": "it wrote more than limits.scratch_bytes to its scratch folder",
    "limit-output": "an output is larger than limits.output_bytes",
    "step-cancelled": "the task was cancelled",
}


def filter_body(grant: Grant, found: Mapping[str, Any]) -> tuple[bytes, tuple[str, ...]]:
    """The JSON object that may leave, and the keys that are withheld.

    For train: num_examples and the metadata keys of the policy.  For validate: the metrics of the policy, finite numbers
    only.  For predict: the whole result, when the policy allows all metrics.
    """
    if grant.task == "train":
        body, withheld = _pick(found, (*grant.egress.metadata, "num_examples"))
        _check_examples(body.get("num_examples"), grant.min_num_examples)
    else:
        body, withheld = _pick(found, grant.egress.metrics)
        if grant.task == "validate":
            _check_metrics(body)
    _check_ranges(grant.egress.ranges, body)
    data = json.dumps(body, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False).encode()
    if len(data) > MAX_BODY_BYTES:
        raise OutputError(f"cannot release: {len(data)} bytes of metadata, at most {MAX_BODY_BYTES}", code="metrics-invalid")
    return data, withheld


def _pick(found: Mapping[str, Any], allowed: tuple[str, ...]) -> tuple[dict[str, Any], tuple[str, ...]]:
    too_long = [key for key in found if len(key) > MAX_KEY_CHARS]
    if too_long:
        raise OutputError(f"cannot release: the key {too_long[0][:40]!r}… is longer than {MAX_KEY_CHARS}", code="metrics-invalid")
    unreadable = [key for key in found if not key.isprintable()]
    if unreadable:
        raise OutputError(
            f"cannot release: the key {unreadable[0]!r} has control or direction characters", code="metrics-invalid"
        )
    everything = "*" in allowed
    body = {key: value for key, value in found.items() if everything or key in allowed}
    withheld = sorted(set(found) - set(body))
    more = len(withheld) - MAX_NAMED
    return body, (*withheld[:MAX_NAMED], *([f"… and {more} more"] if more > 0 else []))


def _check_examples(count: Any, least: int) -> None:
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise OutputError(
            f"cannot release the update: num_examples must be an integer above 0, found {count!r:.40}",
            code="metrics-invalid",
            hint="train writes it to <out>-metadata.",
        )
    if count < least:
        raise OutputError(
            f"cannot release the update: it was made of {count} examples, the policy asks for at least {least}",
            code="metrics-invalid",
            hint="See budget.min_num_examples in the policy.",
        )


def _check_metrics(body: Mapping[str, Any]) -> None:
    for key, value in body.items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not math.isfinite(value):
            raise OutputError(
                f"cannot release the metrics: {key} must be a finite number, found {value!r:.40}", code="metrics-invalid"
            )


def _check_ranges(ranges: Sequence[NumberRange], body: Mapping[str, Any]) -> None:
    """What leaves under a key that the policy bounds is a finite number within the bounds."""
    for bound in ranges:
        if bound.key not in body:
            continue
        value = body[bound.key]
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        low = number and bound.minimum is not None and Decimal(str(value)) < Decimal(bound.minimum)
        high = number and bound.maximum is not None and Decimal(str(value)) > Decimal(bound.maximum)
        if not number or low or high:
            raise OutputError(
                f"cannot release: {bound.key} must be a number from {bound.minimum or '-∞'} to {bound.maximum or '∞'}, as the"
                f" policy says, found {value!r:.40}",
                code="metrics-invalid",
                hint="See egress.ranges in the policy.",
            )


def limit_counts(limits: Limits) -> dict[str, int]:
    """Limits as the flat map of an event."""
    return dict(asdict(limits))


def result_body(result: StepResult) -> dict[str, Any]:
    """A StepResult as the body of `run-ended`."""
    return {
        "ended": result.ended,
        "exit_status": result.exit_status,
        "signal": result.signal,
        "code": result.code,
        "wall_ms": result.wall_ms,
        "cpu_ms": result.cpu_ms,
        "max_rss_bytes": result.max_rss_bytes,
        "stdout_bytes": result.stdout_bytes,
        "stdout_dropped_bytes": result.stdout_dropped_bytes,
        "scratch_bytes": result.scratch_bytes,
        "killed_processes": result.killed_processes,
        "denied": dict(result.denied),
        "enforced": [f"{item.name}: {item.status} ({', '.join(item.providers)})" for item in result.enforced],
    }
