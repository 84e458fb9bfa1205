# SPDX-License-Identifier: Apache-2.0
"""The gate's reader: runs in a confined child, reads what the step wrote, says whether it is what the contract demands.

train: weights with the form of the model received, every number finite, and JSON with `num_examples` above zero.
validate: a flat JSON object of scalars.  predict: a JSON object.  build: one file, a model.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any

from scaleoutd.core import records, strictjson
from scaleoutd.core.plan import GateFacts, GateRules, ModelRules
from scaleoutd.errors import FormatError, OutputError
from scaleoutd.step.model import Model, read_model
from scaleoutd.step.norm import update_norm
from scaleoutd.step.source import FileSource

_MAX_ANSWER_TEXT_BYTES = 48 * 1024
DEFAULT_HINT = "Correct what the step writes; what it printed stands in its log."
HINTS = {
    "output-shape": "In the step, save the arrays under the names, and with the shapes and types, that <in> has.",
    "output-not-finite": "In the step, look for a division by zero, the logarithm of 0 or too large a learning rate.",
    "output-norm": "In the step, clip the difference to the model received, or see egress.max_update_norm in the policy.",
    "metrics-invalid": "In the step, write one flat JSON object of numbers, texts, true or false.",
}


def check_train(
    rules: GateRules, models: ModelRules, weights_fd: int, metadata_fd: int, received_fd: int
) -> tuple[dict[str, Any], Sequence[int]]:
    """GateFacts of a training."""
    sizes = [_size_of(fd) for fd in (weights_fd, metadata_fd, received_fd)]
    metadata = _metadata(rules, FileSource(metadata_fd, sizes[1]))
    examples = metadata.get("num_examples")
    if not isinstance(examples, int) or isinstance(examples, bool) or examples <= 0:
        raise _refuse(f"num_examples must be an integer above zero, found {str(examples)[:40]!r}", "metrics-invalid")
    try:
        written = read_model(FileSource(weights_fd, sizes[0]), models)
    except FormatError as exc:
        raise OutputError(exc.message.replace("the model", "the weights of the step"), hint=exc.hint) from exc
    received = read_model(FileSource(received_fd, sizes[2]), models) if rules.same_form else None
    if received is not None:
        _compare(written, received)
    _check_checksums(written)
    _check_finite(rules, written)
    if rules.max_update_norm is not None:
        _check_norm(rules.max_update_norm, written, received)
    return records.encode(GateFacts(sizes[0], _text(metadata), written.facts)), ()


def check_result(rules: GateRules, result_fd: int) -> tuple[dict[str, Any], Sequence[int]]:
    """GateFacts of a validation or prediction."""
    size = _size_of(result_fd)
    value = _metadata(rules, FileSource(result_fd, size))
    if rules.task == "validate":
        for key, item in value.items():
            if isinstance(item, list | dict):
                raise _refuse(f"metric {key[:80]!r} is no number, string, boolean or null", "metrics-invalid")
    return records.encode(GateFacts(size, _text(value))), ()


def check_build(rules: GateRules, models: ModelRules, size: int, name: str, fd: int) -> tuple[dict[str, Any], Sequence[int]]:
    """GateFacts of a seed model: of a format that the policy allows, undamaged, every number finite."""
    try:
        written = read_model(FileSource(fd, size), models)
    except FormatError as exc:
        raise OutputError(exc.message.replace("the model", f"the seed model {name[:64]!r}"), hint=exc.hint) from exc
    _check_checksums(written)
    _check_finite(rules, written)
    return records.encode(GateFacts(size, _text({"name": name}), written.facts)), ()


def _check_finite(rules: GateRules, written: Model) -> None:
    for array in written.arrays if rules.finite else ():
        if not array.is_finite():
            raise _refuse(f"array {array.name[:120]!r} has a NaN or an infinity", "output-not-finite")


def _check_norm(most: str, written: Model, received: Model | None) -> None:
    if received is None or written.facts.format not in ("npz", "safetensors"):
        raise _refuse("its distance from the model received can be measured for npz and safetensors of one form", "output-norm")
    found = update_norm(written.arrays, {array.name: array for array in received.arrays}, float(most))
    if not found <= float(most):
        raise _refuse(f"its distance (L2) from the model received is above {most}, found at least {found:.6g}", "output-norm")


def _size_of(fd: int) -> int:
    """fstat(3) is newfstatat(2) in glibc, which takes a path and is not in the filter."""
    size = os.lseek(fd, 0, os.SEEK_END)
    os.lseek(fd, 0, os.SEEK_SET)  # the runner has the same open file
    return size


def _metadata(rules: GateRules, source: FileSource) -> dict[str, Any]:
    if source.size > rules.metadata_bytes:
        raise _refuse(f"its JSON has {source.size} bytes, at most {rules.metadata_bytes} are read", "limit-output")
    try:
        data = source.read_at(0, source.size)
        value = strictjson.parse(data, max_bytes=rules.metadata_bytes, allow_floats=True, what="the JSON of the step")
    except FormatError as exc:
        raise OutputError(exc.message, code="metrics-invalid", hint="Write it with json.dump, without NaN.") from exc
    if not isinstance(value, dict):
        raise _refuse("its JSON is no object", "metrics-invalid")
    return value


def _compare(model: Model, origin: Model) -> None:
    written, received = model.facts, origin.facts
    if received.arrays_sha256 is None and written.arrays_sha256 is None:
        return  # opaque bytes have no form
    if written.format != received.format:
        raise _refuse(f"expected weights of format {received.format}, as received, found {written.format}", "output-shape")
    if written.arrays_sha256 != received.arrays_sha256:
        raise _refuse(_first_difference(_forms(model), _forms(origin)), "output-shape")


def _forms(model: Model) -> dict[str, str]:
    return {array.name: f"{array.dtype} {list(array.shape)}" for array in model.arrays}


def _first_difference(written: dict[str, str], received: dict[str, str]) -> str:
    """In the order of the model received; what it does not have comes last."""
    for name, form in received.items():
        if (found := written.get(name, "none of that name")) != form:
            return f"array {name[:120]!r}: expected {form[:120]} as in the model received, found {found[:120]}"
    more = next((name for name in written if name not in received), "")
    return f"array {more[:120]!r} is not in the model received, which has {len(received)} arrays"


def _check_checksums(model: Model) -> None:
    try:
        for archive in model.archives:
            for name in archive.entries:
                archive.check_crc(name)
    except FormatError as exc:
        raise OutputError(exc.message.replace("the model", "the weights of the step"), hint=exc.hint) from exc


def _text(value: dict[str, Any]) -> str:
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, sort_keys=True, separators=(",", ":"))
    if len(json.dumps(text, ensure_ascii=False).encode()) > _MAX_ANSWER_TEXT_BYTES:
        raise _refuse(f"its JSON needs more than {_MAX_ANSWER_TEXT_BYTES} bytes in a message", "limit-output")
    return text


def _refuse(cause: str, code: str) -> OutputError:
    error = OutputError(f"cannot let the output leave: {cause}", hint=f"{HINTS.get(code, DEFAULT_HINT)} `scaleoutctl why {code}`")
    error.code = code
    return error
