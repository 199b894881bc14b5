"""The pickle reader: trainers' pickles of builtins and PIL images, read without running any code.

``pickle.Unpickler`` is not used, not even with a ``find_class`` that refuses everything: nine bytes with a memo index
make it allocate gigabytes. Here only the opcodes in the table below are executed, and the cost of each is known before.
It reads what CPython's ``pickle.dumps`` writes, in any protocol, for None, bools, numbers, str, bytes, lists, tuples
and dicts, and from protocol 2 on for PIL images.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

from .pickle_allowlist import Global, PickleError, call_function, construct, require_shallow, set_state

MAX_OPCODES = 500_000
_MAX_OPEN = 100_000
_MAX_INTEGER_BYTES = 16
_MAX_NUMBER_CHARS = 64
_MAX_NAME_CHARS = 128
_MAX_OTHER_KEYS = 1_000  # keys that are not str: numbers can be chosen so that all of them collide


def loads(data: bytes | bytearray) -> Any:
    """The value of a pickle. Raises PickleError. Takes memory and time at most in proportion to ``data``.

    Values are None, bool, int of at most 16 bytes, float, str, bytes, list, tuple, dict with keys of these except
    containers, and PILState. A value that occurs twice may be one object; none contains itself, and none is nested
    deeper than MAX_DEPTH.
    """
    value = _Decoder(data).run()
    require_shallow(value)
    return value


class _Decoder:
    def __init__(self, data: bytes | bytearray) -> None:
        self._data = memoryview(data).toreadonly()
        self._lines = data  # a memoryview cannot be searched
        self._at = 0
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: list[Any] = []
        self._made = 0
        self._other_keys = 0

    def run(self) -> Any:
        try:
            for _ in range(MAX_OPCODES):
                opcode = self._take(1)[0]
                if opcode == ord("."):
                    return self._result()
                handler = _OPCODES.get(opcode)
                if handler is None:
                    raise PickleError(f"opcode 0x{opcode:02x} is not one that trainers use")
                handler(self)
                if len(self._stack) > _MAX_OPEN or len(self._marks) > _MAX_OPEN:
                    raise PickleError(f"more than {_MAX_OPEN} values are open at once")
        except (UnicodeDecodeError, OverflowError) as error:
            raise PickleError(f"a value is invalid: {type(error).__name__}") from None
        finally:
            self._data.release()
        raise PickleError(f"more than {MAX_OPCODES} opcodes")

    def _result(self) -> Any:
        if len(self._stack) != 1 or self._marks:
            raise PickleError("it ends before its value is complete")
        if self._at != len(self._data):
            raise PickleError("there are bytes after its end")
        return self._pop()

    # --- bytes --------------------------------------------------------------------------------------------------------

    def _take(self, count: int) -> memoryview:
        if count > len(self._data) - self._at:
            raise PickleError("it is cut short")
        self._at += count
        return self._data[self._at - count : self._at]

    def _size(self, width: int) -> int:
        return int.from_bytes(self._take(width), "little")

    def _line(self, limit: int | None = None) -> bytes:
        """Take the bytes up to the end of the line; ``limit`` is in bytes."""
        stop = len(self._data) if limit is None else min(len(self._data), self._at + limit + 1)
        end = self._lines.find(b"\n", self._at, stop)
        if end < 0:
            raise PickleError("a line has no end")
        line = bytes(self._take(end - self._at))
        self._at += 1
        return line

    # --- stack and memo -----------------------------------------------------------------------------------------------

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _pop(self, kind: type | None = None) -> Any:
        value = self._top()
        if kind is not None and type(value) is not kind:
            raise PickleError(f"a {type(value).__name__} stands where a {kind.__name__} belongs")
        self._stack.pop()
        return value

    def _top(self) -> Any:
        if len(self._stack) <= (self._marks[-1] if self._marks else 0):
            raise PickleError("it takes a value that is not there")
        return self._stack[-1]

    def _pop_mark(self) -> list[Any]:
        if not self._marks:
            raise PickleError("a mark is missing")
        start = self._marks.pop()
        values = self._stack[start:]
        del self._stack[start:]
        return values

    def _remember(self, index: int) -> None:
        """Store the top value in the memo. Pickle's own indices count up from 0; others would only make it large."""
        if index > len(self._memo):
            raise PickleError(f"memo index {index} where {len(self._memo)} is next")
        if index == len(self._memo):
            self._memo.append(self._top())
        else:
            self._memo[index] = self._top()

    def _recall(self, index: int) -> None:
        if index >= len(self._memo):
            raise PickleError(f"memo index {index} of {len(self._memo)}")
        self._push(self._memo[index])

    # --- opcodes ------------------------------------------------------------------------------------------------------

    def _proto(self) -> None:
        version = self._size(1)
        if version > 5:
            raise PickleError(f"protocol {version}")

    def _frame(self) -> None:
        size = self._size(8)
        if size > len(self._data) - self._at:
            raise PickleError("it is cut short")

    def _mark(self) -> None:
        self._marks.append(len(self._stack))

    def _integer(self, width: int) -> None:
        if width > _MAX_INTEGER_BYTES:
            raise PickleError(f"an integer of {width} bytes")
        self._push(int.from_bytes(self._take(width), "little", signed=True))

    def _text_integer(self) -> None:
        line = self._line(_MAX_NUMBER_CHARS)
        self._push({b"00": False, b"01": True}[line] if line in (b"00", b"01") else self._number(int, line))

    def _number(self, kind: type[int] | type[float], line: bytes) -> int | float:
        try:
            return kind(line)
        except ValueError:
            raise PickleError("a number that cannot be read") from None

    def _index(self) -> int:
        line = self._line(_MAX_NUMBER_CHARS)
        if not line.isdigit():
            raise PickleError("a memo index that is not a number")
        return int(line)

    def _float(self) -> None:
        self._push(struct.unpack(">d", self._take(8))[0])

    def _str(self, width: int) -> None:
        self._push(str(self._take(self._size(width)), "utf-8"))

    def _bytes(self, width: int) -> None:
        self._push(bytes(self._take(self._size(width))))

    def _tuple(self, count: int) -> None:
        values = [self._pop() for _ in range(count)]
        self._push(tuple(reversed(values)))

    def _append(self) -> None:
        value = self._pop()
        self._list_on_top().append(value)

    def _appends(self) -> None:
        values = self._pop_mark()
        self._list_on_top().extend(values)

    def _list_on_top(self) -> list[Any]:
        target = self._top()
        if type(target) is not list:
            raise PickleError(f"items are appended to a {type(target).__name__}")
        return target

    def _set_item(self) -> None:
        value, key = self._pop(), self._pop()
        self._set_items([key, value])

    def _set_items(self, items: list[Any]) -> None:
        target = self._top()
        if type(target) is not dict:
            raise PickleError(f"keys are set in a {type(target).__name__}")
        target.update(self._pairs(items))

    def _text_global(self) -> None:
        module, name = self._line(_MAX_NAME_CHARS), self._line(_MAX_NAME_CHARS)
        self._push(Global(str(module, "utf-8"), str(name, "utf-8")))

    def _stack_global(self) -> None:
        name, module = self._pop(str), self._pop(str)
        self._push(Global(module, name))

    def _reduce(self) -> None:
        arguments, function = self._pop(tuple), self._pop(Global)
        value = call_function(function, arguments)
        self._made += len(value)  # a text that occurs once could be turned into bytes again and again
        if self._made > len(self._data):
            raise PickleError("it makes more bytes than it has")
        self._push(value)

    def _new_object(self) -> None:
        arguments, kind = self._pop(tuple), self._pop(Global)
        self._push(construct(kind, arguments))

    def _build(self) -> None:
        state = self._pop()
        set_state(self._top(), state)

    def _pairs(self, items: list[Any]) -> list[tuple[Any, Any]]:
        if len(items) % 2:
            raise PickleError("a key has no value")
        keys = items[::2]
        for key in keys:
            if type(key) is not str:
                self._other_keys += 1
                if type(key) not in (bytes, int, float, bool, type(None)) or self._other_keys > _MAX_OTHER_KEYS:
                    raise PickleError(f"a key is a {type(key).__name__}")
        return list(zip(keys, items[1::2], strict=True))

    def _raw_text(self) -> None:
        line = self._line()
        try:
            text = str(line, "raw-unicode-escape")
            text.encode()  # fails for half of a surrogate pair
        except UnicodeError:
            raise PickleError("a text that is not valid Unicode") from None
        self._push(text)


_OPCODES: dict[int, Callable[[_Decoder], None]] = {
    0x80: _Decoder._proto,
    0x95: _Decoder._frame,
    ord("("): _Decoder._mark,
    ord("N"): lambda self: self._push(None),
    0x88: lambda self: self._push(True),
    0x89: lambda self: self._push(False),
    ord("J"): lambda self: self._integer(4),
    ord("K"): lambda self: self._push(self._size(1)),
    ord("M"): lambda self: self._push(self._size(2)),
    0x8A: lambda self: self._integer(self._size(1)),
    0x8B: lambda self: self._integer(self._size(4)),
    ord("G"): _Decoder._float,
    0x8C: lambda self: self._str(1),
    ord("X"): lambda self: self._str(4),
    0x8D: lambda self: self._str(8),
    ord("C"): lambda self: self._bytes(1),
    ord("B"): lambda self: self._bytes(4),
    0x8E: lambda self: self._bytes(8),
    0x96: lambda self: self._bytes(8),
    ord(")"): lambda self: self._push(()),
    0x85: lambda self: self._tuple(1),
    0x86: lambda self: self._tuple(2),
    0x87: lambda self: self._tuple(3),
    ord("t"): lambda self: self._push(tuple(self._pop_mark())),
    ord("]"): lambda self: self._push([]),
    ord("l"): lambda self: self._push(self._pop_mark()),
    ord("a"): _Decoder._append,
    ord("e"): _Decoder._appends,
    ord("}"): lambda self: self._push({}),
    ord("d"): lambda self: self._push(dict(self._pairs(self._pop_mark()))),
    ord("s"): _Decoder._set_item,
    ord("u"): lambda self: self._set_items(self._pop_mark()),
    0x94: lambda self: self._remember(len(self._memo)),
    ord("q"): lambda self: self._remember(self._size(1)),
    ord("r"): lambda self: self._remember(self._size(4)),
    ord("p"): lambda self: self._remember(self._index()),
    ord("h"): lambda self: self._recall(self._size(1)),
    ord("j"): lambda self: self._recall(self._size(4)),
    ord("g"): lambda self: self._recall(self._index()),
    ord("I"): _Decoder._text_integer,
    ord("L"): lambda self: self._push(self._number(int, self._line(_MAX_NUMBER_CHARS).removesuffix(b"L"))),
    ord("F"): lambda self: self._push(self._number(float, self._line(_MAX_NUMBER_CHARS))),
    ord("V"): _Decoder._raw_text,
    ord("c"): _Decoder._text_global,
    0x93: _Decoder._stack_global,
    ord("R"): _Decoder._reduce,
    0x81: _Decoder._new_object,
    ord("b"): _Decoder._build,
}
"""The handler of each opcode; any other opcode is refused."""
