"""Checking the operations of a pickle before it is loaded, without executing them.

Python's unpickler checks lengths, but not three things that a damaged or hostile record can
contain: memo numbers that make it reserve gigabytes, tuples nested so deeply that hashing them
overflows the stack, and operations that call into the process (persistent ids, extensions).
"""

from __future__ import annotations

import pickle

from .errors import Refused

_MAX_OPERATIONS = 1_000_000
_MAX_TUPLES = 5_000
_MAX_LINE = 4_000  # bytes of a number, name or text in protocol 0; longest real one: ~100

_PLAIN, _SIZED, _LINE, _TWO_LINES, _MEMO, _MEMO_LINE, _TUPLE, _STOP, _FORBIDDEN = range(1, 10)

# operation -> (what to do, bytes of its argument or of the length before it)
_ACTIONS: dict[int, tuple[int, int]] = {}


def _add(action: int, size: int, *operations: bytes) -> None:
    for operation in operations:
        _ACTIONS[operation[0]] = action, size


_p = pickle
_add(_PLAIN, 0, _p.MARK, _p.POP, _p.POP_MARK, _p.DUP, _p.NONE, _p.NEWTRUE, _p.NEWFALSE, _p.REDUCE)
_add(_PLAIN, 0, _p.APPEND, _p.BUILD, _p.DICT, _p.APPENDS, _p.LIST, _p.OBJ, _p.SETITEM, _p.SETITEMS)
_add(_PLAIN, 0, _p.EMPTY_LIST, _p.EMPTY_DICT, _p.EMPTY_TUPLE, _p.EMPTY_SET, _p.ADDITEMS)
_add(_PLAIN, 0, _p.NEWOBJ, _p.NEWOBJ_EX, _p.STACK_GLOBAL, _p.MEMOIZE, _p.READONLY_BUFFER)
_add(_PLAIN, 1, _p.BININT1, _p.BINGET, _p.BINPUT, _p.PROTO)
_add(_PLAIN, 2, _p.BININT2)
_add(_PLAIN, 4, _p.BININT, _p.LONG_BINGET)
_add(_PLAIN, 8, _p.BINFLOAT, _p.FRAME)
_add(_SIZED, 1, _p.SHORT_BINSTRING, _p.SHORT_BINBYTES, _p.SHORT_BINUNICODE, _p.LONG1)
_add(_SIZED, 4, _p.BINSTRING, _p.BINBYTES, _p.BINUNICODE, _p.LONG4)
_add(_SIZED, 8, _p.BINBYTES8, _p.BINUNICODE8, _p.BYTEARRAY8)
_add(_LINE, 0, _p.INT, _p.LONG, _p.FLOAT, _p.GET)
_add(_LINE, 1, _p.STRING, _p.UNICODE)
_add(_TWO_LINES, 0, _p.GLOBAL, _p.INST)
_add(_MEMO, 4, _p.LONG_BINPUT)
_add(_MEMO_LINE, 0, _p.PUT)
_add(_TUPLE, 0, _p.TUPLE, _p.TUPLE1, _p.TUPLE2, _p.TUPLE3, _p.FROZENSET)
_add(_STOP, 0, _p.STOP)
_add(_FORBIDDEN, 0, _p.PERSID, _p.BINPERSID, _p.NEXT_BUFFER)
_add(_FORBIDDEN, 1, _p.EXT1)
_add(_FORBIDDEN, 2, _p.EXT2)
_add(_FORBIDDEN, 4, _p.EXT4)

# the common case in one look-up: bytes to skip, or 0 if more has to be done
_SKIP = [0] * 256
for _operation, (_action, _size) in _ACTIONS.items():
    if _action == _PLAIN:
        _SKIP[_operation] = 1 + _size


def scan(raw: bytes, start: int = 0, *, storage: bool = False) -> int:
    """Walk over one pickle.

    Args:
        raw: the bytes. start: position of its beginning.
        storage: allow the persistent id of a stored tensor.

    Returns:
        The position of its end.

    Raises:
        Refused: an unknown or forbidden operation, too many operations, or no end.
    """
    position, operations, tuples = start, 0, 0
    skip = _SKIP
    try:
        while True:
            operation = raw[position]
            step = skip[operation]
            operations += 1
            if step:
                position += step
                continue
            if operations > _MAX_OPERATIONS:
                raise Refused("pickle", f"more than {_MAX_OPERATIONS} pickle operations")
            action, size = _ACTIONS.get(operation, (0, 0))
            if action == _SIZED:
                length = int.from_bytes(raw[position + 1 : position + 1 + size], "little")
                position += 1 + size + length
            elif action == _TUPLE:
                tuples += 1
                if tuples > _MAX_TUPLES:
                    raise Refused("pickle", f"more than {_MAX_TUPLES} tuples in a record")
                position += 1
            elif action == _STOP:
                return position + 1
            elif action == 0 or (action == _FORBIDDEN and not storage):
                raise Refused("pickle", f"it has the pickle operation {bytes([operation])!r}")
            else:
                position = _other(raw, position, action, size, operations)
    except IndexError:
        raise Refused("pickle", "cannot be unpickled (it ends too early)") from None


def _other(raw: bytes, position: int, action: int, size: int, operations: int) -> int:
    """The end of one of the rarer operations."""
    if action == _FORBIDDEN:  # that of a stored tensor: its text form is never written
        if raw[position] != _p.BINPERSID[0]:
            raise Refused("pickle", f"it has the pickle operation {raw[position : position + 1]!r}")
        return position + 1
    if action == _MEMO:
        _memo(int.from_bytes(raw[position + 1 : position + 1 + size], "little"), operations)
        return position + 1 + size
    end = _line_end(raw, position + 1, limited=size == 0)
    if action == _TWO_LINES:
        end = _line_end(raw, end, limited=True)
    elif action == _MEMO_LINE:
        number = raw[position + 1 : end - 1]
        if not number.isdigit():
            raise Refused(
                "pickle", "cannot be unpickled (a memo number with characters other than digits)"
            )
        _memo(int(number), operations)
    return end


def _line_end(raw: bytes, start: int, limited: bool) -> int:
    end = raw.find(b"\n", start)
    if end < 0:
        raise IndexError
    if limited and end - start > _MAX_LINE:
        raise Refused("pickle", f"a line of {end - start} bytes in its pickle")
    return end + 1


def _memo(number: int, operations: int) -> None:
    if number > operations:
        raise Refused("pickle", f"memo number {number} after {operations} pickle operations")
