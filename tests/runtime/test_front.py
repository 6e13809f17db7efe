"""Models of strings and of sequences: whatever is given, the right answer or one clear Error, as
for arrays (test_feeds.py).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

import qcompiler
from qcompiler import Error, Executor, compile, load
from qcompiler.runtime import Model
from qcompiler.runtime.text import NOTE, Program

WORDS = np.array(["x", "y"], object)
X = np.arange(6, dtype=np.float32).reshape(2, 3)


def artifact_of(node: Any, inputs: list[Any], output: Any, **options: Any) -> qcompiler.Artifact:
    graph = helper.make_graph([node], "g", inputs, [output])
    opset = helper.make_opsetid("", 21)
    return compile(helper.make_model(graph, opset_imports=[opset]), threads=1, **options)


@pytest.fixture(scope="module")
def text() -> qcompiler.Artifact:
    node = helper.make_node("StringConcat", ["a", "b"], ["y"])
    a, b, y = (helper.make_tensor_value_info(n, TensorProto.STRING, [2]) for n in "aby")
    return artifact_of(node, [a, b], y)


@pytest.fixture(scope="module")
def lists() -> Model:
    node = helper.make_node("ConcatFromSequence", ["s"], ["y"], axis=0)
    s = helper.make_tensor_sequence_value_info("s", 1, [2, 3])
    y = helper.make_tensor_value_info("y", 1, None)
    return load(artifact_of(node, [s], y, input_shapes={"s": [(2, 3), (2, 3)]}))


OF_TEXT: dict[str, Callable[[Model], Any]] = {
    "one more": lambda m: m(WORDS, WORDS, WORDS),
    "one less": lambda m: m(WORDS),
    "an unknown name": lambda m: m.run({"a": WORDS, "b": WORDS, "c": WORDS}),
    "a missing one": lambda m: m.run({"a": WORDS}),
    "nothing": lambda m: m.run(None),  # type: ignore[arg-type]
    "no names": lambda m: m.run([WORDS, WORDS]),  # type: ignore[arg-type]
    "numbers": lambda m: m(WORDS, np.ones(2)),
    "ragged": lambda m: m(WORDS, [["x"], ["a", "b"]]),
    "no dimension": lambda m: m(WORDS, "x"),
}


@pytest.mark.parametrize("call", OF_TEXT.values(), ids=list(OF_TEXT))
def test_what_is_no_text_is_one_clear_error(text: qcompiler.Artifact, call: Any) -> None:
    model = load(text)
    assert model(WORDS, WORDS).tolist() == ["xx", "yy"]
    with pytest.raises(Error, match="input") as caught:
        call(model)
    assert len(str(caught.value).splitlines()) <= 2


OF_LISTS: dict[str, Callable[[Model], Any]] = {
    "one more": lambda m: m([X, X], X),
    "elements": lambda m: m(X, X),
    "too many": lambda m: m([X, X, X]),
    "none": lambda m: m(None),
    "a number": lambda m: m(np.float32(3)),
    "text": lambda m: m("ab"),
    "a dict": lambda m: m({0: X, 1: X}),
    "a set": lambda m: m({1, 2}),
    "an element, too": lambda m: m.run({"s": [X, X], "s[0]": X}),
    "no names": lambda m: m.run([[X, X]]),  # type: ignore[arg-type]
    "nothing": lambda m: m.run({}),
}


@pytest.mark.parametrize("call", OF_LISTS.values(), ids=list(OF_LISTS))
def test_what_is_no_sequence_is_one_clear_error(lists: Model, call: Any) -> None:
    with pytest.raises(Error, match="input") as caught:
        call(lists)
    assert len(str(caught.value).splitlines()) <= 2


def test_anything_of_as_many_arrays_is_a_sequence(lists: Model) -> None:
    want = np.concatenate([X, X])
    for given in ([X, X], (X, X), np.stack([X, X]), (X for _ in range(2))):
        np.testing.assert_array_equal(lists(given), want)
    np.testing.assert_array_equal(lists.run({"s[0]": X, "s[1]": X})["y"], want)


def test_executors_refuse_strings_which_python_would_have_to_read(
    text: qcompiler.Artifact, tmp_path: Path
) -> None:
    with pytest.raises(Error, match="an executor takes no model of strings"):
        Executor(text.save(tmp_path / "text.qc"))
    with pytest.raises(Error, match="`bind` takes no model of strings"):
        load(text).bind("a", "y")


def test_a_pattern_that_is_none_is_an_error() -> None:
    a = helper.make_tensor_value_info("a", TensorProto.STRING, [2])
    y = helper.make_tensor_value_info("y", TensorProto.BOOL, [2])
    for pattern in ("(", "[z-a]", "a{1000000000000}"):
        node = helper.make_node("RegexFullMatch", ["a"], ["y"], pattern=pattern)
        with pytest.raises(Error, match="RegexFullMatch: "):
            load(artifact_of(node, [a], y))(WORDS)


def test_damaged_notes_are_one_clear_error(text: qcompiler.Artifact) -> None:
    note = text.manifest.notes[NOTE]
    raw = json.loads(note)
    damaged = [note[:-1], "[]", "3", "{}", "null", "[" * 100_000, '"x"']
    damaged += [json.dumps({k: v for k, v in raw.items() if k != gone}) for gone in raw]
    damaged += [json.dumps({**raw, k: wrong}) for k in raw for wrong in (None, 3, [3], "x")]
    damaged += [json.dumps({**raw, "steps": [["Nothing", {}, [], []]]})]
    damaged += [json.dumps({**raw, "steps": [["StringConcat", {}, ["nobody"], ["y"]]]})]
    damaged += [json.dumps(made) for w in WRONG for made in changed_anywhere(raw, w)]
    refused = 0
    for each in damaged:
        manifest = replace(text.manifest, notes={**text.manifest.notes, NOTE: each})
        try:
            load(replace(text, manifest=manifest)).run({"a": WORDS, "b": WORDS})
        except Error:
            refused += 1
    assert refused > len(damaged) / 2
    with pytest.raises(Error, match="cannot be read"):
        Program("{}")


WRONG = None, 3, -1, 1.5, "x", "xy", [], [1], ["x"], [[]], {}, {"x": 1}


def changed_anywhere(raw: Any, value: object) -> Iterator[Any]:
    """JSON -> the same with this value in the place of one of its own, for each of them."""
    for key in raw if isinstance(raw, dict) else range(len(raw)) if isinstance(raw, list) else ():
        for inner in (value, *changed_anywhere(raw[key], value)):
            made = copy(raw)
            made[key] = inner
            yield made


@pytest.mark.parametrize(
    ("length", "words"),
    [("many", "the length of a sequence"), ("-1", "input"), (str(1 << 62), "has more")],
)
def test_lengths_of_sequences_that_make_no_sense_are_refused(
    lists: Model, length: str, words: str
) -> None:
    manifest = replace(lists.artifact.manifest, notes={"sequence s": length})
    with pytest.raises(Error, match=words):
        load(replace(lists.artifact, manifest=manifest))([X, X])
