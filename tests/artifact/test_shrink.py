"""Weights in fewer bytes: every form gives back the same bytes, and damaged ones are refused."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompiler import plugins
from qcompiler.artifact.artifact import open_artifact
from qcompiler.artifact.shrink import Bytes, Piece, expand, shrink
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


def expanded(pieces: Iterable[Piece], kept: Bytes, size: int) -> Bytes:
    """What is kept -> what it stands for."""
    at, whole = 0, np.zeros(size, np.uint8)

    def fill(into: Bytes) -> None:
        nonlocal at
        into[:] = kept[at : at + into.size]
        at += into.size

    expand(pieces, fill, kept.size, whole)
    assert at == kept.size
    return whole


@pytest.mark.parametrize("word", [1, 4])
@pytest.mark.parametrize("bits", [1, 2, 3, 4, 5, 6, 7, 8])
def test_words_of_few_values_take_as_many_bits_as_their_number_needs(word: int, bits: int) -> None:
    block = few_words(20_000, 1 << bits, word)
    pieces, kept = shrink(block, [(0, block.size)])
    if word == 1 and bits == 8:
        assert not pieces, "a byte of 256 values is a byte"
        return
    assert [(p.kind, p.word, p.bits, p.odd) for p in pieces] == [("palette", word, bits, 0)]
    assert kept.size == (word << bits) + 20_000 * bits // 8
    np.testing.assert_array_equal(expanded(pieces, kept, block.size), block)


def test_the_odd_words_between_have_places_of_their_own() -> None:
    block = few_words(30_000, 15, 1).copy()
    places = RANDOM.choice(30_000, 300, replace=False)
    block[places] = RANDOM.integers(0, 256, 300)
    pieces, kept = shrink(block, [(0, block.size)])
    assert pieces[0].kind == "palette"
    assert 100 < pieces[0].odd <= 300
    assert kept.size < 0.6 * block.size
    np.testing.assert_array_equal(expanded(pieces, kept, block.size), block)


@pytest.mark.parametrize("kind", ["bfloat16", "float16"])
def test_floats_that_fit_into_16_bits_take_16(kind: str) -> None:
    floats = RANDOM.standard_normal(5000).astype(np.float32)
    if kind == "bfloat16":
        exact = (floats.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
    else:
        exact = floats.astype(np.float16).astype(np.float32)
    block = exact.view(np.uint8)
    pieces, kept = shrink(block, [(0, block.size)])
    assert pieces[0].kind == kind
    assert kept.size == block.size // 2
    np.testing.assert_array_equal(expanded(pieces, kept, block.size), block)


def test_what_has_no_small_form_stays_as_it_is() -> None:
    block = RANDOM.standard_normal(5000).astype(np.float32).view(np.uint8)
    pieces, kept = shrink(block, [(0, block.size)])
    assert pieces == ()
    assert kept is block


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_bytes_come_back(data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(0, 3000), min_size=1, max_size=5))
    whole = np.zeros(sum(sizes) + 64 * len(sizes), np.uint8)
    blocks, at = [], 0
    for size in sizes:
        values = data.draw(st.sampled_from([1, 2, 5, 16, 200, 256]))
        whole[at : at + size] = RANDOM.integers(0, values, size)
        blocks.append((at, size))
        at += size + 64
    pieces, kept = shrink(whole, blocks)
    back = expanded(pieces, kept, whole.size) if pieces else kept
    np.testing.assert_array_equal(back, whole)
    assert kept.size <= whole.size


@pytest.mark.parametrize(
    "change",
    [
        {"offset": 1 << 40},
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
    pieces, kept = shrink(block, [(0, block.size)])
    wrong: Piece = replace(pieces[0], **change)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"weights|palette|halves|block"):
        expanded((wrong,), kept, block.size)


def test_pieces_that_overlap_are_refused() -> None:
    block = np.concatenate([few_words(4000, 16, 4), few_words(4000, 16, 4)])
    half = block.size // 2
    (first, second), kept = shrink(block, [(0, half), (half, half)])
    np.testing.assert_array_equal(expanded((first, second), kept, block.size), block)
    with pytest.raises(ValueError, match="blocks of weights overlap"):
        expanded((first, replace(second, offset=half - 4)), kept, block.size)


def test_an_artifact_of_few_values_is_a_small_file_that_means_the_same(tmp_path: Path) -> None:
    x = placeholder("x", Type("float32", (4, 64)))
    w = (RANDOM.integers(-7, 8, (64, 64)) / np.float32(16)).astype(np.float32)
    device = plugins.device("host", 1)
    graph = Graph((x,), (make("MatMul", x, constant(w)),), ("y",))
    lowered = run_stage(graph, "layout", None, Choice(), device)
    made = assemble(plan(lowered, device))
    path = made.save(tmp_path / "model.qc")
    found = open_artifact(path)
    assert [p.kind for p in found.manifest.pieces] == ["palette"]
    assert path.stat().st_size < len(made.code) + 0.3 * made.weights.nbytes + 8192
    np.testing.assert_array_equal(found.weights, made.weights)
    assert found.save(tmp_path / "again.qc").stat().st_size == path.stat().st_size
    feed = {"x": RANDOM.standard_normal((4, 64)).astype(np.float32)}
    np.testing.assert_array_equal(load(path).run(feed)["y"], load(made).run(feed)["y"])
