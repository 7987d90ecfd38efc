"""Bytes on their way in."""

import hashlib

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from cairn.errors import InvalidMessage
from cairn.transport.receiver import PayloadReceiver

MODEL = bytes(range(256)) * 40


@given(st.lists(st.integers(0, len(MODEL)), max_size=20))
def test_however_it_is_cut_the_bytes_and_their_digest_are_the_models(cuts: list[int]) -> None:
    into = bytearray(len(MODEL))
    incoming = PayloadReceiver(len(MODEL), blake3(b"header"), memoryview(into))
    ends = [*sorted(cuts), len(MODEL)]
    for begin, end in zip([0, *ends], ends, strict=False):
        assert (incoming.offset, incoming.missing) == (begin, len(MODEL) - begin)
        incoming.write(memoryview(MODEL)[begin:end])
    assert incoming.missing == 0
    assert hashlib.sha256(into).digest() == hashlib.sha256(MODEL).digest()
    assert incoming.digest() == blake3(b"header" + MODEL).digest()


def test_more_than_was_to_come_is_refused_and_changes_nothing() -> None:
    into = bytearray(b"x" * 12)
    incoming = PayloadReceiver(10, blake3(), memoryview(into)[:10])
    incoming.write(memoryview(b"12345"))
    with pytest.raises(InvalidMessage, match="more bytes than the 10"):
        incoming.write(memoryview(b"678901"))
    assert incoming.offset == 5
    assert incoming.digest() == blake3(b"12345").digest()
    incoming.write(memoryview(b"67890"))
    assert bytes(into) == b"1234567890xx"


def test_without_memory_the_bytes_are_counted_and_hashed_only() -> None:
    incoming = PayloadReceiver(len(MODEL), blake3(), None)
    incoming.write(memoryview(MODEL))
    assert incoming.missing == 0
    assert incoming.digest() == blake3(MODEL).digest()


def test_a_model_without_bytes_is_whole_at_once() -> None:
    incoming = PayloadReceiver(0, blake3(b"header"), memoryview(bytearray()))
    assert incoming.missing == 0
    incoming.write(memoryview(b""))
    assert incoming.digest() == blake3(b"header").digest()
