"""Makes bad messages out of good ones: field by field, and byte by byte. Pure; all chance comes from a seed."""

import math
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

INTEGERS = [0, 1, 2, 64, 999, 2**31 - 1, 2**32 - 1, 2**53 + 1, 2**63 - 1, 2**64 - 1, -1, -(2**63)]
DOUBLES = [0.0, -0.0, 1e308, -1e308, 5e-324, math.nan, math.inf, -math.inf]
TEXTS = [
    "",
    "alice",
    "x" * 5000,
    "\0",
    "\N{COLLISION SYMBOL}" * 1000,
    "../../etc/passwd",
    "a\nb",
    "__metadata__",
]
_LIMITS = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
    FieldDescriptor.CPPTYPE_ENUM: (-(2**31), 2**31 - 1),
}


def mutated(random: Random, message: Message, others: Sequence[bytes]) -> bytes:
    """The bytes of a message that is good but for a few fields or bytes; `others` are spliced into it."""
    changed = type(message)()
    changed.CopyFrom(message)
    if random.random() < 0.7:
        for _ in range(random.choice((1, 1, 1, 2, 5))):
            change_field(random, changed)
    raw = bytearray(changed.SerializeToString())
    if random.random() < 0.4:
        for _ in range(random.choice((1, 1, 2, 8))):
            change_bytes(random, raw, others)
    return bytes(raw)


def change_field(random: Random, message: Message) -> None:
    """Give one field, anywhere in the message, a value that no good peer would send."""
    fields: list[Any] = list(message.DESCRIPTOR.fields)
    if not fields:
        return
    field = random.choice(fields)
    if field.is_repeated:
        _change_repeated(random, message, field)
    elif field.cpp_type == FieldDescriptor.CPPTYPE_MESSAGE:
        if random.random() < 0.2:
            message.ClearField(field.name)
        else:
            inner: Message = getattr(message, field.name)
            inner.SetInParent()
            change_field(random, inner)
    elif random.random() < 0.1:
        message.ClearField(field.name)
    else:
        setattr(message, field.name, bad_value(random, field))


def _change_repeated(random: Random, message: Message, field: FieldDescriptor) -> None:
    items: Any = getattr(message, field.name)
    if random.random() < 0.2:
        message.ClearField(field.name)
    elif field.message_type is not None and field.message_type.GetOptions().map_entry:
        key, value = field.message_type.fields
        items[bad_value(random, key)] = bad_value(random, value)
    elif field.cpp_type != FieldDescriptor.CPPTYPE_MESSAGE:
        items.extend(bad_value(random, field) for _ in range(random.choice((1, 2, 100))))
    elif items and random.random() < 0.7:
        change_field(random, random.choice(items))
    else:
        items.add()


def bad_value(random: Random, field: FieldDescriptor) -> Any:
    if field.cpp_type in _LIMITS:
        low, high = _LIMITS[field.cpp_type]
        return max(low, min(high, random.choice(INTEGERS)))
    if field.cpp_type == FieldDescriptor.CPPTYPE_DOUBLE:
        return random.choice(DOUBLES)
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return random.random() < 0.5
    if field.type == FieldDescriptor.TYPE_BYTES:
        return random.randbytes(random.choice((0, 1, 31, 32, 33, 64, 5000)))
    return random.choice(TEXTS)


def change_bytes(random: Random, raw: bytearray, others: Sequence[bytes]) -> None:
    random.choice(_CHANGES)(random, raw, others)


def _flip(random: Random, raw: bytearray, _others: Sequence[bytes]) -> None:
    if raw:
        raw[random.randrange(len(raw))] ^= 1 << random.randrange(8)


def _truncate(random: Random, raw: bytearray, _others: Sequence[bytes]) -> None:
    del raw[random.randrange(len(raw) + 1) :]


def _duplicate(random: Random, raw: bytearray, _others: Sequence[bytes]) -> None:
    begin = random.randrange(len(raw) + 1)
    raw[begin:begin] = raw[begin : begin + random.randrange(1, 200)] * random.choice((1, 2, 50))


def _splice(random: Random, raw: bytearray, others: Sequence[bytes]) -> None:
    other = random.choice(others) if others else b""
    begin = random.randrange(len(other) + 1)
    place = random.randrange(len(raw) + 1)
    raw[place:place] = other[begin : begin + random.randrange(1, 200)]


def _field(random: Random, raw: bytearray, _others: Sequence[bytes]) -> None:
    """A field of any number and wire type, with a huge varint for its value or its length."""
    tag = random.randrange(1, 20) << 3 | random.randrange(8)
    raw += varint(tag) + random.choice(
        (b"\xff" * 9 + b"\x01", b"\xff" * 10, b"\xff\xff\xff\xff\x0f", b"\x80" * 20, b"")
    )


_CHANGES: list[Callable[[Random, bytearray, Sequence[bytes]], None]] = [
    _flip,
    _flip,
    _truncate,
    _duplicate,
    _splice,
    _field,
]


def varint(value: int) -> bytes:
    digits = []
    while value > 0x7F:
        digits.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*digits, value])


def shuffled_stream(random: Random, messages: list[bytes]) -> list[bytes]:
    """The messages of a stream with some left out, repeated or exchanged."""
    stream = list(messages)
    for _ in range(random.choice((0, 0, 1, 2))):
        if not stream:
            break
        place = random.randrange(len(stream))
        match random.randrange(3):
            case 0:
                del stream[place]
            case 1:
                stream.insert(place, random.choice(stream))
            case _:
                random.shuffle(stream)
    return stream
