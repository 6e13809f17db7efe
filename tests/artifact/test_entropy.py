"""Entropy coding of weights: the same bytes come back, damaged ones are refused, bombs do not go
off.
"""

from __future__ import annotations

import contextlib
import lzma
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompiler.artifact import entropy
from qcompiler.artifact.encode import encode
from qcompiler.artifact.entropy import decode


def bytes_of(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


RNG = np.random.default_rng(0)
FLOATS = RNG.standard_normal(20_000).astype(np.float32)
SPARSE = np.where(RNG.random(FLOATS.size) < 0.2, FLOATS, 0)
BLOCKS = {
    "nothing": np.zeros(0, np.uint8),
    "odd length": RNG.integers(0, 256, 1001).astype(np.uint8),
    "floats": bytes_of(FLOATS),
    "pruned floats": bytes_of(SPARSE),
    "pruned bytes": bytes_of(np.rint(SPARSE * 30).astype(np.int8)),
    "a codebook": bytes_of(RNG.choice(FLOATS[:16], 20_000)),
    "zeros": np.zeros(1 << 17, np.uint8),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_the_same_bytes_come_back(name: str) -> None:
    block = BLOCKS[name]
    coded = np.frombuffer(encode(block), np.uint8)
    assert np.array_equal(decode(coded, block.size), block)


@settings(max_examples=30, deadline=None)
@given(st.binary(max_size=300), st.integers(0, 8))
def test_any_bytes_come_back(data: bytes, zeros: int) -> None:
    block = np.frombuffer(data + bytes(zeros), np.uint8)
    assert np.array_equal(decode(np.frombuffer(encode(block), np.uint8), block.size), block)


def test_what_is_pruned_or_shared_takes_what_its_entropy_says() -> None:
    sparse = BLOCKS["pruned floats"]
    share = 0.2 + 0.7219 / 32  # the floats that are left, and where: entropy of a bit at 0.2
    assert len(encode(sparse)) < (share + 0.01) * sparse.size
    codes = BLOCKS["a codebook"]
    assert len(encode(codes)) < (4.3 / 32) * codes.size
    assert len(encode(BLOCKS["zeros"])) < 400


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_damaged_bytes_are_refused_or_give_as_many(data: st.DataObject) -> None:
    block = BLOCKS[data.draw(st.sampled_from(["odd length", "pruned bytes", "a codebook"]))]
    coded = np.frombuffer(encode(block), np.uint8).copy()
    at = data.draw(st.integers(0, coded.size - 1))
    coded[at] ^= data.draw(st.integers(1, 255))
    coded = coded[: data.draw(st.integers(1, coded.size))]
    with contextlib.suppress(ValueError):
        assert decode(coded, block.size).size == block.size


def test_a_bomb_is_cut_off_at_the_size_that_was_promised(monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = lzma.compress(bytes(1 << 21), lzma.FORMAT_RAW, filters=entropy.FILTERS[1])
    data = np.frombuffer(bytes([0]) + struct.pack("<BQ", 1, len(bomb)) + bomb, np.uint8)
    largest = 0
    real = entropy._decompressed

    def watched(coded: memoryview, size: int, codec: int) -> bytes:
        nonlocal largest
        made = real(coded, size, codec)
        largest = max(largest, len(made))
        return made

    monkeypatch.setattr(entropy, "_decompressed", watched)
    with pytest.raises(ValueError, match="another size"):
        decode(data, 1000)
    assert largest <= 1001
