# SPDX-License-Identifier: Apache-2.0
"""A model file of unknown kind: which format it is, and what is in it.

Two layers: an optional container (PROTOCOL.md section 1.10: a ZIP with metadata.json and training_model.bin) and the weights.
The kind is read from the bytes; a name or a claim of the sender counts for nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from scaleoutd.core import strictjson
from scaleoutd.core.plan import ModelFacts, ModelFormat, ModelRules
from scaleoutd.errors import FormatError, PolicyDeniedError
from scaleoutd.step import arrays, npz, safetensors, torchzip
from scaleoutd.step.archive import Archive
from scaleoutd.step.arrays import Array
from scaleoutd.step.source import Source, refuse

METADATA, WEIGHTS, INFERENCE = "metadata.json", "training_model.bin", "inference_model.bin"
NEWEST_CONTAINER_VERSION = 2
_MAX_METADATA_BYTES = 1 << 20


@dataclass(frozen=True)
class Model:
    """What was found; `archives` are those whose checksums a careful reader compares."""

    facts: ModelFacts
    arrays: tuple[Array, ...]
    archives: tuple[Archive, ...]


def read_model(source: Source, rules: ModelRules) -> Model:
    """The model in `source`.

    FormatError `container-invalid` for damage, `limit-model` for size; PolicyDeniedError `model-format-denied` for a format
    that `rules` do not list, or a pickle inside a torch archive that does more than weights need.
    """
    if source.size > rules.max_bytes:
        raise refuse(f"it has {source.size} bytes, at most {rules.max_bytes} are read", "limit-model")
    if not _is_zip(source):
        return _read_weights(source, rules, ModelFacts("none", "raw"), ())
    archive = Archive(source, max_entries=rules.max_arrays + 16, max_inflated_bytes=rules.max_inflated_bytes)
    if METADATA not in archive.entries:
        return _read_zip(archive, rules, ModelFacts("none", "npz"), ())
    facts = _read_metadata(archive)
    if WEIGHTS not in archive.entries:
        raise refuse(f"the container has no {WEIGHTS}")
    for name in archive.entries:
        opaque = name == INFERENCE or name.startswith("files/")
        if name not in (METADATA, WEIGHTS) and not (opaque and "raw" in rules.formats):
            if opaque:
                raise _denied("raw", f"the container holds {name!r}, which nobody can check;")
            raise refuse(f"the container holds {name!r}, which does not belong there")
    return _read_weights(archive.open(WEIGHTS), rules, facts, (archive,))


def _read_weights(source: Source, rules: ModelRules, facts: ModelFacts, outer: tuple[Archive, ...]) -> Model:
    if _is_zip(source):
        inner = Archive(source, max_entries=rules.max_arrays + 16, max_inflated_bytes=rules.max_inflated_bytes)
        return _read_zip(inner, rules, facts, outer)
    if safetensors.looks_like(source):
        _demand(rules, "safetensors")
        found = safetensors.read_arrays(source, rules.max_arrays)
        return Model(_with_arrays(facts, "safetensors", found), tuple(found), outer)
    kind: ModelFormat = "pickle" if _is_pickle(source) else "raw"
    _demand(rules, kind)
    return Model(ModelFacts(facts.container, kind, facts.model_id, facts.helper_type), (), outer)


def _read_zip(archive: Archive, rules: ModelRules, facts: ModelFacts, outer: tuple[Archive, ...]) -> Model:
    if torchzip.looks_like(archive):
        _demand(rules, "torch")
        kind: ModelFormat = "torch"
        found = torchzip.read_arrays(archive)
    else:
        _demand(rules, "npz")
        kind = "npz"
        found = npz.read_arrays(archive)
    if len(found) > rules.max_arrays:
        raise refuse(f"it has {len(found)} arrays, at most {rules.max_arrays} are read", "limit-model")
    if not found:
        raise refuse("it has no arrays")
    return Model(_with_arrays(facts, kind, found), tuple(found), (*outer, archive))


def _with_arrays(facts: ModelFacts, kind: ModelFormat, found: list[Array]) -> ModelFacts:
    parameters = sum(array.elements for array in found)
    if parameters > strictjson.MAX_SAFE_INTEGER:
        raise refuse(f"it claims {parameters} numbers", "limit-model")
    form = arrays.form_sha256(found)
    return ModelFacts(facts.container, kind, facts.model_id, facts.helper_type, len(found), parameters, form)


def _read_metadata(archive: Archive) -> ModelFacts:
    source = archive.open(METADATA)
    if source.size > _MAX_METADATA_BYTES:
        raise refuse(f"its {METADATA} has {source.size} bytes, at most {_MAX_METADATA_BYTES} are read", "limit-model")
    try:
        data = source.read_at(0, source.size)
        value = strictjson.parse(data, max_bytes=_MAX_METADATA_BYTES, allow_floats=True, what=METADATA)
    except FormatError as exc:
        raise refuse(exc.message) from exc
    if not isinstance(value, dict):
        raise refuse(f"its {METADATA} is no object")
    version = value.get("_version", 1)
    if not isinstance(version, int) or isinstance(version, bool) or not 0 <= version <= NEWEST_CONTAINER_VERSION:
        raise refuse(f"its container has version {str(version)[:32]}, at most {NEWEST_CONTAINER_VERSION} is read")
    texts = []
    for key, most in (("model_id", 256), ("helper_type", 64)):
        text = value.get(key)
        if text is not None and (not isinstance(text, str) or len(text) > most):
            raise refuse(f"its {METADATA} has a {key} that is no string of at most {most} characters")
        texts.append(text)
    return ModelFacts("zip", "raw", texts[0], texts[1])


def _is_zip(source: Source) -> bool:
    return source.size >= 4 and source.read_at(0, 4) in (b"PK\x03\x04", b"PK\x05\x06")


def _is_pickle(source: Source) -> bool:
    """Protocol 2 and later begin with PROTO; that is all that today's libraries write, old torch files included."""
    if source.size < 2:
        return False
    first, protocol = source.read_at(0, 2)
    return first == 0x80 and 2 <= protocol <= 5


def _demand(rules: ModelRules, kind: ModelFormat) -> None:
    if kind not in rules.formats:
        raise _denied(kind, "it")


def _denied(kind: str, subject: str) -> PolicyDeniedError:
    return PolicyDeniedError(
        f"cannot take the model: {subject} is of format {kind}, the policy allows a fixed list of others",
        code="model-format-denied",
        hint=f"Add {kind} to model_formats in the policy if the project's code may read it.",
    )
