"""Weights in fewer bytes: every form gives back the same bytes, and damaged ones are refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompiler import plugins
from qcompiler.artifact.artifact import open_artifact
from qcompiler.artifact.pieces import Bytes, Piece, demand_apart, expand
from qcompiler.artifact.shrink import shrink
from qcompiler.emit.assemble import assemble
from qcompiler.ir import Graph, Type, constant, placeholder
from qcompiler.ops import make
from qcompiler.plan.plan import plan
from qcompiler.runtime import load
from qcompiler.stages import Choice, run_stage

RANDOM = np.random.default_rng(0)


def few_words(count: int, values: int, word: int) -> Bytes:
    """`count` words of `values` different ones."""
    made = RANDOM.standard_normal(values).astype(np.float32).view(np.uint32)
    table = made if word == 4 else np.arange(values).astype(np.uint8)
    return table[RANDOM.integers(0, values, count)].view(np.uint8)


def expanded(piece: Piece, kept: Bytes, size: int) -> Bytes:
    """What is kept -> what it stands for."""
    whole = np.zeros(size, np.uint8)

    def fill(into: Bytes) -> None:
        if into.size != kept.size:
            raise ValueError("the block is not as many bytes as are kept")
        into[:] = kept

    expand(piece, fill, whole)
    return whole


@pytest.mark.parametrize("word", [1, 4])
@pytest.mark.parametrize("bits", [1, 2, 3, 4, 5, 6, 7, 8])
def test_words_of_few_values_take_as_many_bits_as_their_number_needs(word: int, bits: int) -> None:
    block = few_words(20_000, 1 << bits, word)
    (piece,), (kept,) = shrink([block])
    if word == 1 and bits == 8:
        assert piece.kind == "raw", "a byte of 256 values is a byte"
        return
    assert (piece.kind, piece.word, piece.bits, piece.odd) == ("palette", word, bits, 0)
    assert kept.size == (word << bits) + 20_000 * bits // 8
    np.testing.assert_array_equal(expanded(piece, kept, block.size), block)


def test_the_odd_words_between_have_places_of_their_own() -> None:
    block = few_words(30_000, 15, 1).copy()
    places = RANDOM.choice(30_000, 300, replace=False)
    block[places] = RANDOM.integers(0, 256, 300)
    (piece,), (kept,) = shrink([block])
    assert piece.kind == "palette"
    assert 100 < piece.odd <= 300
    assert kept.size < 0.6 * block.size
    np.testing.assert_array_equal(expanded(piece, kept, block.size), block)


@pytest.mark.parametrize("kind", ["bfloat16", "float16"])
def test_floats_that_fit_into_16_bits_take_16(kind: str) -> None:
    floats = RANDOM.standard_normal(5000).astype(np.float32)
    if kind == "bfloat16":
        exact = (floats.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
    else:
        exact = floats.astype(np.float16).astype(np.float32)
    block = exact.view(np.uint8)
    (piece,), (kept,) = shrink([block])
    assert piece.kind == kind
    assert kept.size == block.size // 2
    np.testing.assert_array_equal(expanded(piece, kept, block.size), block)


def test_what_has_no_small_form_stays_as_it_is() -> None:
    block = RANDOM.standard_normal(5000).astype(np.float32).view(np.uint8)
    (piece,), (kept,) = shrink([block])
    assert piece == Piece(block.size, block.size, "raw")
    assert kept is block


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_bytes_come_back(data: st.DataObject) -> None:
    blocks = []
    for size in data.draw(st.lists(st.integers(0, 3000), min_size=1, max_size=5)):
        values = data.draw(st.sampled_from([1, 2, 5, 16, 200, 256]))
        blocks.append(RANDOM.integers(0, values, size).astype(np.uint8))
    pieces, kept = shrink(blocks, code=data.draw(st.booleans()))
    for piece, some, block in zip(pieces, kept, blocks, strict=True):
        np.testing.assert_array_equal(expanded(piece, some, block.size), block)
        assert piece.stored == some.size
    assert sum(p.stored for p in pieces) <= sum(b.size for b in blocks)


@pytest.mark.parametrize(
    "change",
    [
        {"bytes": 1 << 20},
        {"stored": 7},
        {"kind": "zip"},
        {"kind": "float16"},
        {"bits": 3},
        {"bits": 60},
        {"word": 3},
        {"odd": 1 << 30},
    ],
    ids=str,
)
def test_pieces_that_do_not_fit_are_refused(change: dict[str, object]) -> None:
    block = few_words(4000, 16, 4)
    (piece,), (kept,) = shrink([block])
    wrong: Piece = replace(piece, **change)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"weights|palette|halves|block"):
        expanded(wrong, kept, block.size)


def test_blocks_that_overlap_or_lie_outside_are_refused() -> None:
    demand_apart([(64, 36), (0, 64), (100, 0)], 100)
    with pytest.raises(ValueError, match="blocks of weights overlap"):
        demand_apart([(60, 40), (0, 64)], 100)
    for place in ((64, 37), (1 << 40, 1), (-1, 2)):
        with pytest.raises(ValueError, match="a block of weights lies outside"):
            demand_apart([place], 100)


def test_an_artifact_of_few_values_is_a_small_file_that_means_the_same(tmp_path: Path) -> None:
    x = placeholder("x", Type("float32", (4, 64)))
    w = (RANDOM.integers(-7, 8, (64, 64)) / np.float32(16)).astype(np.float32)
    device = plugins.device("host", 1)
    graph = Graph((x,), (make("MatMul", x, constant(w)),), ("y",))
    lowered = run_stage(graph, "layout", None, Choice(), device)
    made = assemble(plan(lowered, device))
    (binary,) = made.binaries
    path = made.save(tmp_path / "model.qc")
    found = open_artifact(path)
    assert [p.kind for p in found.manifest.blobs] == ["palette"]
    assert path.stat().st_size < len(binary.code) + 0.3 * binary.weights.nbytes + 8192
    np.testing.assert_array_equal(found.binaries[0].weights, binary.weights)
    assert found.save(tmp_path / "again.qc").stat().st_size == path.stat().st_size
    feed = {"x": RANDOM.standard_normal((4, 64)).astype(np.float32)}
    np.testing.assert_array_equal(load(path).run(feed)["y"], load(made).run(feed)["y"])
