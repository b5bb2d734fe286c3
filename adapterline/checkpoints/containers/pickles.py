"""A pickle read as data: nothing in it is imported, called or constructed.

Python's unpickler, and every one derived from it, resolves names and calls what they lead to. This one follows the
opcodes that `pickletools` parses, and where a pickle names a class or a function it leaves the name: a `Global`, or a
`Made` with the arguments and the state that the object would have got. What a reader needs as a value, like
`torch.Size`, it turns into one by `builders` of its own.

Bounded are the pickle's size, the number of its opcodes (and so the memo and all that can be built), and what may be a
key of a dict: hashing a tuple of a million nested tuples overflows the C stack. Readers that walk the result bound
their walk themselves: a hundred opcodes can make a list of 2**50 paths.
"""

from __future__ import annotations

import io
import pickletools
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from adapterline.errors import CheckpointError

#: Bytes. That of a whole FLUX with its optimizer has 3 MB.
MAX_PICKLE = 128_000_000
MAX_OPCODES = 5_000_000

#: What of the standard library a training state may hold. Everything else in there is a pickle that wants to act.
_HARMLESS = re.compile(
    r"(argparse|collections|dataclasses|datetime|decimal|enum|fractions|pathlib(\._local)?|typing|uuid)\.\w+"
    r"|(builtins|__builtin__)\.(set|frozenset|list|dict|tuple|int|float|str|bytes|bytearray|bool|complex|slice|range"
    r"|object|type|NoneType)"
    r"|functools\.partial|types\.SimpleNamespace|_codecs\.encode|(copyreg|copy_reg)\._reconstructor"
)
#: How Python up to 3.11.3 pickles a member of an enum, and every Python a nested class in protocols before 4.
_GETATTR: Final = ("builtins.getattr", "__builtin__.getattr")
_STANDARD: Final = sys.stdlib_module_names | {"__builtin__", "copy_reg", "commands", "posix", "nt"}

Builder = Callable[..., Any]


@dataclass(frozen=True)
class Global:
    """A class or function that the pickle names: `module.name`, never resolved."""

    name: str


@dataclass(eq=False)
class Made:
    """What the pickle would have made by calling `name`: an inert record of the call.

    `state` is what it would have got by `__setstate__`, `items` what would have been appended or set on it.
    """

    name: str
    args: tuple[Any, ...] = ()
    state: Any = None
    items: list[Any] = field(default_factory=list)

    def get(self, attribute: str) -> Any:
        """The attribute of this name in the state, or None."""
        return self.state.get(attribute) if isinstance(self.state, dict) else None


#: Containers of the standard library, as plain ones.
CONTAINERS: Final[Mapping[str, Builder]] = {
    "collections.OrderedDict": lambda pairs=(): dict_of(pairs),
    "builtins.dict": lambda pairs=(): dict_of(pairs),
    "builtins.list": lambda items=(): list(_sequence(items)),
    "builtins.tuple": lambda items=(): tuple(_sequence(items)),
    "torch.Size": lambda items=(): tuple(_sequence(items)),
}


def read_pickle(
    data: bytes,
    where: str,
    builders: Mapping[str, Builder] = CONTAINERS,
    persistent: Callable[[Any], Any] | None = None,
) -> Any:
    """The value of a pickle, with stand-ins for whatever is no plain value.

    `builders` make a value of the call of a global by their own means; `persistent` of a persistent id.
    CheckpointError, about `where`, if it is malformed, too large, or asks for what no training state holds.
    """
    if len(data) > MAX_PICKLE:
        raise _malformed(where, f"it has {len(data)} bytes, more than {MAX_PICKLE}")
    try:
        return _Machine(where, builders, persistent).run(data)
    except CheckpointError:
        raise
    except RecursionError as error:
        raise _malformed(where, "it is nested too deeply") from error
    except Exception as error:  # a mutilated pickle makes the stack lead anywhere
        raise _malformed(where, type(error).__name__) from error


def dict_of(pairs: Any) -> dict[Any, Any]:
    """A dict of pairs or of a dict, with keys that are safe to hash."""
    result: dict[Any, Any] = {}
    for key, value in pairs.items() if isinstance(pairs, dict) else _sequence(pairs):
        result[_hashable(key)] = value
    return result


def _sequence(items: Any) -> list[Any] | tuple[Any, ...]:
    if not isinstance(items, list | tuple):
        raise TypeError("not a sequence")
    return items


def _hashable(key: Any) -> Any:
    atoms = str | bytes | int | float | Global | Made | None
    if isinstance(key, atoms):
        return key
    if isinstance(key, tuple) and len(key) <= 64:
        for item in key:
            if not isinstance(item, atoms) and not (
                isinstance(item, tuple) and len(item) <= 64 and all(isinstance(atom, atoms) for atom in item)
            ):
                raise TypeError("a key that is not plain")
        return key
    raise TypeError("a key that is not plain")


class _Machine:
    """The pickle machine: a stack, the marks on it, a memo."""

    def __init__(self, where: str, builders: Mapping[str, Builder], persistent: Callable[[Any], Any] | None) -> None:
        self._where = where
        self._builders = builders
        self._persistent = persistent
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def run(self, data: bytes) -> Any:
        steps = self._steps()
        file = io.BytesIO(data)
        for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
            if count > MAX_OPCODES:
                raise _malformed(self._where, f"it has more than {MAX_OPCODES} opcodes")
            name = opcode.name
            if name in _PUSHES:
                self._stack.append(argument)
            elif name in _CONSTANTS:
                self._stack.append(_CONSTANTS[name]())
            elif name == "STOP":
                if file.read(1):
                    raise _malformed(self._where, "bytes follow after its end")
                return self._stack.pop()
            elif (step := steps.get(name)) is not None:
                step(argument)
            elif name not in _NOTHING:
                raise _malformed(self._where, f"it uses the opcode {name}, which torch.save and DCP do not")
        raise _malformed(self._where, "it has no end")

    def _steps(self) -> dict[str, Callable[[Any], None]]:
        tuples: dict[str, Callable[[Any], None]] = {
            f"TUPLE{count}": lambda _, count=count: self._tuple(count)  # type: ignore[misc]
            for count in (1, 2, 3)
        }
        return tuples | {
            "MARK": lambda _: self._marks.append(len(self._stack)),
            "POP": lambda _: self._stack.pop(),
            "POP_MARK": lambda _: self._since_mark(),
            "TUPLE": lambda _: self._stack.append(tuple(self._since_mark())),
            "LIST": lambda _: self._stack.append(self._since_mark()),
            "DICT": lambda _: self._stack.append(dict_of(_pairs(self._since_mark()))),
            "FROZENSET": lambda _: self._stack.append(Made("builtins.frozenset", (self._since_mark(),))),
            "APPEND": lambda _: self._extend([self._stack.pop()]),
            "APPENDS": lambda _: self._extend(self._since_mark()),
            "ADDITEMS": lambda _: self._extend(self._since_mark()),
            "SETITEM": lambda _: self._set([self._stack.pop(), self._stack.pop()][::-1]),
            "SETITEMS": lambda _: self._set(self._since_mark()),
            "PUT": self._remember,
            "BINPUT": self._remember,
            "LONG_BINPUT": self._remember,
            "MEMOIZE": lambda _: self._remember(len(self._memo)),
            "GET": self._recall,
            "BINGET": self._recall,
            "LONG_BINGET": self._recall,
            "GLOBAL": lambda names: self._stack.append(self._global(*names.split(" ", 1))),
            "STACK_GLOBAL": lambda _: self._stack_global(),
            "REDUCE": lambda _: self._call(self._stack.pop()),
            "NEWOBJ": lambda _: self._call(self._stack.pop()),
            "NEWOBJ_EX": lambda _: self._call_with_names(),
            "BUILD": lambda _: self._build(self._stack.pop()),
            "BINPERSID": lambda _: self._stack.append(self._persist(self._stack.pop())),
        }

    def _since_mark(self) -> list[Any]:
        start = self._marks.pop()
        items = self._stack[start:]
        del self._stack[start:]
        return items

    def _tuple(self, count: int) -> None:
        items = tuple(self._stack[-count:])
        if len(items) != count:
            raise IndexError("the stack is empty")
        self._stack[-count:] = [items]

    def _remember(self, place: int) -> None:
        self._memo[place] = self._stack[-1]

    def _recall(self, place: int) -> None:
        self._stack.append(self._memo[place])

    def _extend(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if isinstance(target, Made):
            target.items.extend(items)
        elif isinstance(target, list):
            target.extend(items)
        else:
            raise TypeError("not a list")

    def _set(self, flat: list[Any]) -> None:
        target = self._stack[-1]
        if isinstance(target, Made):
            target.items.extend(_pairs(flat))
        elif isinstance(target, dict):
            target.update(dict_of(_pairs(flat)))
        else:
            raise TypeError("not a dict")

    def _stack_global(self) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        self._stack.append(self._global(module, name))

    def _global(self, module: Any, name: Any) -> Global:
        if not isinstance(module, str) or not isinstance(name, str):  # the stack holds anything
            raise TypeError("a name that is no text")
        full = f"{module}.{name}"
        if _is_standard(full) and not _HARMLESS.fullmatch(full) and full not in _GETATTR:
            raise self._hostile(full)
        return Global(full)

    def _hostile(self, full: str) -> CheckpointError:
        return CheckpointError(
            f"{self._where} holds more than tensors: its pickle asks for {printable(full)}, which could do anything"
            " when it is run. Nothing of it was run.",
            expected="tensors, containers and settings",
            remedy="Do not load this file elsewhere either, unless you know who wrote it.",
        )

    def _call(self, args: Any) -> None:
        called = self._stack.pop()
        if not isinstance(args, tuple) or not isinstance(called, Global | Made):
            raise TypeError("a call of what cannot be called")
        self._stack.append(self._result(called, args))

    def _call_with_names(self) -> None:
        names, args, called = self._stack.pop(), self._stack.pop(), self._stack.pop()
        if not isinstance(names, dict) or not isinstance(args, tuple) or not isinstance(called, Global | Made):
            raise TypeError("a call of what cannot be called")
        self._stack.append(Made(called.name, (*args, names)))

    def _result(self, called: Global | Made, args: tuple[Any, ...]) -> Any:
        if isinstance(called, Global) and called.name in self._builders:
            return self._builders[called.name](*args)
        if isinstance(called, Global) and called.name in _GETATTR:
            match args:
                case (Global(owner), str(attribute)) if attribute.isidentifier() and not _is_standard(owner):
                    return Made(owner, (attribute,))
            raise self._hostile(called.name)
        if called.name in ("copyreg._reconstructor", "copy_reg._reconstructor") and args:
            return Made(args[0].name if isinstance(args[0], Global) else called.name, args[1:])
        return Made(called.name if isinstance(called, Global) else f"{called.name}()"[:200], args)

    def _build(self, state: Any) -> None:
        target = self._stack[-1]
        if isinstance(target, Made):
            target.state = state
        elif not isinstance(target, dict):  # an OrderedDict's attributes, like a state dict's _metadata: no effect
            raise TypeError("a state for what has none")

    def _persist(self, identifier: Any) -> Any:
        if self._persistent is None:
            raise TypeError("a persistent id where there is none")
        return self._persistent(identifier)


def _is_standard(full: str) -> bool:
    return full.partition(".")[0] in _STANDARD


_PUSHES: Final = {
    "BININT", "BININT1", "BININT2", "INT", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "UNICODE",
    "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8",
    "STRING", "BINSTRING", "SHORT_BINSTRING",
}  # fmt: skip
_CONSTANTS: Final[Mapping[str, Callable[[], Any]]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_SET": lambda: Made("builtins.set"),
}
_NOTHING: Final = {"PROTO", "FRAME"}


def _pairs(flat: list[Any]) -> list[tuple[Any, Any]]:
    return list(zip(flat[::2], flat[1::2], strict=True))


def printable(text: Any) -> str:
    """What can be said of a text of the file in a message: a terminal would obey what is in there."""
    return re.sub(r"[^ -~]", "?", str(text)[:80])


def _malformed(where: str, what: str) -> CheckpointError:
    return CheckpointError(
        f"The pickle in {where} cannot be read: {what}.",
        expected="what torch.save writes",
        remedy="Save it again, best as .safetensors.",
    )
