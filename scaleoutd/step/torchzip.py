# SPDX-License-Identifier: Apache-2.0
"""PyTorch's ZIP archives: the pickle in them is never loaded, only walked.

`data.pkl` is read opcode by opcode with pickletools.genops and carried out on plain values by a machine that knows the few
opcodes and the few names of a state dictionary: tensors, storages, parameters, ordered dictionaries.  Every other opcode and
every other name is refused, so the file can do nothing here and, as far as its names go, nothing in torch.load either.
"""

from __future__ import annotations

import io
import pickletools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from scaleoutd.step.archive import Archive
from scaleoutd.step.arrays import FLOATS, Array, FloatKind
from scaleoutd.step.source import Source, refuse

_MAX_PICKLE_BYTES = 8 << 20
_MAX_OPCODES = 2_000_000
_MAX_DEPTH = 16
_MAX_KEY_CHARS = 1024
_MAX_NAME_CHARS = 1024
# A list may hold the same list twice, and that one another: what is short in the file is without end to whoever walks it.
_MAX_ITEMS = 1_000_000

_STORAGES: dict[str, tuple[str, int, FloatKind | None]] = {
    "FloatStorage": ("float32", 4, FLOATS["f4"]), "DoubleStorage": ("float64", 8, FLOATS["f8"]),
    "HalfStorage": ("float16", 2, FLOATS["f2"]), "BFloat16Storage": ("bfloat16", 2, FLOATS["bf2"]),
    "LongStorage": ("int64", 8, None), "IntStorage": ("int32", 4, None), "ShortStorage": ("int16", 2, None),
    "CharStorage": ("int8", 1, None), "ByteStorage": ("uint8", 1, None), "BoolStorage": ("bool", 1, None),
}  # fmt: skip
_FUNCTIONS = {"torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter", "collections OrderedDict"}


@dataclass(frozen=True)
class _Name:
    """A global that the pickle names; never resolved."""

    text: str


@dataclass(frozen=True)
class _Storage:
    """The numbers of one or more tensors: a file of the archive."""

    kind: str
    key: str
    elements: int


@dataclass(frozen=True)
class _Tensor:
    """A part of a storage."""

    storage: _Storage
    shape: tuple[int, ...]


_MARK = object()


def looks_like(archive: Archive) -> bool:
    return any(name == "data.pkl" or name.endswith("/data.pkl") for name in archive.entries)


def read_arrays(archive: Archive) -> list[Array]:
    """The tensors of a state dictionary, with their numbers.  A storage of several tensors is listed under each."""
    pickles = [name for name in archive.entries if name == "data.pkl" or name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise refuse("the torch archive has several pickles")
    root = pickles[0][: -len("data.pkl")]
    _check_entries(archive, root)
    source = archive.open(pickles[0])
    if source.size > _MAX_PICKLE_BYTES:
        raise refuse(f"its pickle has {source.size} bytes, at most {_MAX_PICKLE_BYTES} are read", "limit-model")
    walk = _Walk()
    walk.visit(_Machine().run(source.read_at(0, source.size)), "", 0)
    used = {f"{root}data/{tensor.storage.key}" for tensor in walk.tensors.values()}
    unused = [name for name in archive.entries if name.startswith(f"{root}data/") and name not in used]
    if unused:
        raise refuse(f"entry {unused[0]!r} holds numbers that no array has")
    sources = {name: archive.open(name) for name in sorted(used & archive.entries.keys())}
    return [_array(name, tensor, f"{root}data/{tensor.storage.key}", sources) for name, tensor in walk.tensors.items()]


def _check_entries(archive: Archive, root: str) -> None:
    known = {"data.pkl", "version", "byteorder", ".format_version", ".storage_alignment", ".data/serialization_id"}
    for name in archive.entries:
        rest = name[len(root) :] if name.startswith(root) else ""
        if rest not in known and not (rest.startswith("data/") and rest[5:].isdigit()):
            raise refuse(f"entry {name!r} does not belong in a torch archive")
    order = archive.entries.get(root + "byteorder")
    if order is not None and (order.size_bytes != 6 or archive.open(order.name).read_at(0, 6) != b"little"):
        raise refuse("the torch archive is not little-endian")


def _array(name: str, tensor: _Tensor, entry: str, sources: Mapping[str, Source]) -> Array:
    dtype, width, kind = _STORAGES[tensor.storage.kind]
    if entry not in sources:
        raise refuse(f"array {name!r} has its numbers in {entry!r}, which is not there")
    source = sources[entry]
    if source.size != tensor.storage.elements * width:
        raise refuse(f"array {name!r} has {source.size} bytes of numbers, expected {tensor.storage.elements * width}")
    return Array(name, dtype, tensor.shape, source, 0, source.size, kind)


class _Walk:
    """All tensors below a value, by a path that no two of them share."""

    def __init__(self) -> None:
        self.tensors: dict[str, _Tensor] = {}
        self._items = 0

    def visit(self, value: Any, path: str, depth: int) -> None:
        self._items += 1
        if depth > _MAX_DEPTH:
            raise refuse("its dictionaries are nested too deep")
        if self._items > _MAX_ITEMS:
            raise refuse(f"its dictionaries have more than {_MAX_ITEMS} items", "limit-model")
        if len(path) > _MAX_NAME_CHARS:
            raise refuse(f"a name in it has more than {_MAX_NAME_CHARS} characters", "limit-model")
        if isinstance(value, _Tensor):
            if not path.isascii() and any("\ud800" <= char <= "\udfff" for char in path):
                raise refuse("an array has a name that is no text")
            if path in self.tensors:
                raise refuse(f"two arrays have the name {path[:120]!r}")
            self.tensors[path] = value
        elif isinstance(value, dict):
            for key, item in value.items():
                self.visit(item, f"{path}.{key}" if path else str(key), depth + 1)
        elif isinstance(value, list | tuple):
            for index, item in enumerate(value):
                self.visit(item, f"{path}[{index}]", depth + 1)


class _Machine:
    """A pickle machine over plain values.  Each method is one opcode; an opcode without a method is refused."""

    def __init__(self) -> None:
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        self._simple: dict[str, Any] = {
            "NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": (), "MARK": _MARK,
        }  # fmt: skip
        self._methods: dict[str, Callable[[Any], None]] = {
            "EMPTY_DICT": lambda _: self._stack.append({}),
            "EMPTY_LIST": lambda _: self._stack.append([]),
            "MEMOIZE": lambda _: self._memo.__setitem__(len(self._memo), self._stack[-1]),
            "GLOBAL": self._global,
            "STACK_GLOBAL": self._stack_global,
            "TUPLE": lambda _: self._stack.append(tuple(self._to_mark())),
            "TUPLE1": lambda _: self._tuple(1),
            "TUPLE2": lambda _: self._tuple(2),
            "TUPLE3": lambda _: self._tuple(3),
            "APPEND": lambda _: self._extend([self._stack.pop()]),
            "APPENDS": lambda _: self._extend(self._to_mark()),
            "SETITEM": lambda _: self._update([self._stack.pop(-2), self._stack.pop()]),
            "SETITEMS": lambda _: self._update(self._to_mark()),
            "BINPERSID": self._persistent,
            "REDUCE": self._reduce,
            "BUILD": self._build,
        }
        for name in ("BINPUT", "LONG_BINPUT"):
            self._methods[name] = lambda number: self._memo.__setitem__(number, self._stack[-1])
        for name in ("BINGET", "LONG_BINGET"):
            self._methods[name] = lambda number: self._stack.append(self._memo[number])
        for name in ("BININT", "BININT1", "BININT2", "LONG1", "BINUNICODE", "SHORT_BINUNICODE", "BINFLOAT"):
            self._methods[name] = self._stack.append

    def run(self, data: bytes) -> Any:
        try:
            for count, (opcode, argument, at) in enumerate(pickletools.genops(io.BytesIO(data))):
                if count > _MAX_OPCODES:
                    raise refuse("its pickle has too many opcodes", "limit-model")
                if opcode.name in ("PROTO", "FRAME"):
                    continue
                if opcode.name == "STOP":
                    return self._stack.pop()
                if opcode.name in self._simple:
                    self._stack.append(self._simple[opcode.name])
                elif opcode.name in self._methods:
                    if opcode.name == "GLOBAL":
                        _check_spelling(str(argument), data, at or 0)
                    self._methods[opcode.name](argument)
                else:
                    raise refuse(f"its pickle uses opcode {opcode.name}, which weights do not need", "model-format-denied")
        except (ValueError, IndexError, KeyError, TypeError, AttributeError) as exc:
            raise refuse(f"its pickle is damaged: {exc}") from exc
        raise refuse("its pickle has no end")

    def _to_mark(self) -> list[Any]:
        at = len(self._stack) - 1
        while self._stack[at] is not _MARK:
            at -= 1
            if at < 0:
                raise ValueError("a mark is missing")
        items = self._stack[at + 1 :]
        del self._stack[at:]
        return items

    def _tuple(self, count: int) -> None:
        items = tuple(self._stack[-count:])
        if len(items) != count:
            raise ValueError("the stack is empty")
        del self._stack[-count:]
        self._stack.append(items)

    def _extend(self, items: list[Any]) -> None:
        if not isinstance(self._stack[-1], list):
            raise ValueError("something is appended to what is no list")
        self._stack[-1].extend(items)

    def _update(self, items: list[Any]) -> None:
        if not isinstance(self._stack[-1], dict):
            raise ValueError("an item is set in what is no dictionary")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, str | int):
                raise ValueError("a key is neither a string nor an integer")
            if isinstance(key, str) and len(key) > _MAX_KEY_CHARS:
                raise ValueError("a key is too long")
            self._stack[-1][key] = value

    def _global(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        storage = module in ("torch", "torch.storage") and name in _STORAGES
        if argument not in _FUNCTIONS and not storage:
            raise refuse(f"its pickle names {argument[:120]!r}, which weights do not need", "model-format-denied")
        self._stack.append(_Name(argument))

    def _stack_global(self, _: Any) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        if not isinstance(name, str) or not isinstance(module, str):  # the text of a nested value can be without end
            raise ValueError("a name is no string")
        self._global(f"{module} {name}")

    def _persistent(self, _: Any) -> None:
        """("storage", storage type, key, location, elements), see torch.serialization."""
        kind, storage, key, _location, elements = self._stack.pop()
        name = storage.text.partition(" ")[2]
        if kind != "storage" or name not in _STORAGES or not _is_key(key) or not _natural(elements):
            raise ValueError("a persistent id is no storage")
        self._stack.append(_Storage(name, key, elements))

    def _reduce(self, _: Any) -> None:
        arguments, function = self._stack.pop(), self._stack.pop()
        if not isinstance(function, _Name) or not isinstance(arguments, tuple):
            raise ValueError("something is called that is no name")
        if function.text == "collections OrderedDict":
            if arguments:
                raise ValueError("an ordered dictionary has arguments")
            self._stack.append({})
        elif function.text == "torch._utils _rebuild_parameter":
            self._stack.append(arguments[0])
        elif function.text == "torch._utils _rebuild_tensor_v2":
            self._stack.append(_tensor(*arguments[:4]))
        else:
            raise ValueError(f"{function.text!r} is called")

    def _build(self, _: Any) -> None:
        """State of an ordered dictionary (`_metadata` of a state dictionary): plain values, left out."""
        state = self._stack.pop()
        if not isinstance(state, dict) or not isinstance(self._stack[-1], dict):
            raise ValueError("state is set on what is no dictionary")


def _check_spelling(argument: str, data: bytes, at: int) -> None:
    """pickletools resolves escapes in a name, pickle itself does not: only a name that both read alike is taken."""
    module, _, name = argument.partition(" ")
    if not data.startswith(f"c{module}\n{name}\n".encode("utf-8", "surrogatepass"), at):
        raise ValueError("a name is written with escapes")


def _tensor(storage: Any, start: Any, shape: Any, strides: Any) -> _Tensor:
    ok = isinstance(storage, _Storage) and isinstance(shape, tuple) and isinstance(strides, tuple)
    if not ok or len(shape) != len(strides) or not all(_natural(value) for value in (start, *shape, *strides)):
        raise ValueError("a tensor is described wrongly")
    last = start + sum((extent - 1) * stride for extent, stride in zip(shape, strides, strict=True))
    if 0 not in shape and last >= storage.elements:
        raise ValueError("a tensor reaches beyond its storage")
    return _Tensor(storage, shape)


def _is_key(value: Any) -> bool:
    return isinstance(value, str) and len(value) < 20 and value.isascii() and value.isdigit()


def _natural(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53
