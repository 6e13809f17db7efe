"""Whatever is given as an input: the right answer, or one Error that says what is wanted."""

from __future__ import annotations

from collections import OrderedDict, UserDict
from typing import Any

import numpy as np
import pytest
from onnx import helper

from qcompiler import Error, compile, load
from qcompiler.runtime import Model

X = np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3)


def model_of(shape: list[int]) -> Model:
    graph = helper.make_graph(
        [helper.make_node("Neg", ["x"], ["y"])],
        "negation",
        [helper.make_tensor_value_info("x", 1, shape)],
        [helper.make_tensor_value_info("y", 1, shape)],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return load(compile(made, threads=1))


@pytest.fixture(scope="module")
def model() -> Model:
    return model_of([2, 3])


class Raising:
    def __array__(self, *_: Any, **__: Any) -> np.ndarray:
        raise KeyError("nothing here")


class OnlyDLPack:
    """A tensor of a library that numpy does not know."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def __dlpack__(self, **options: Any) -> Any:
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self.array.__dlpack_device__()


WRONG = {
    "None": None,
    "a number": 3.0,
    "text": "x",
    "bytes": b"x",
    "a dict": {"x": X},
    "a set": {1.0},
    "ragged lists": [[1.0], [1.0, 2.0, 3.0]],
    "lists of other things": [["a", None, 3.0], [1.0, 2.0, 3.0]],
    "float64": X.astype(np.float64),
    "big-endian": X.astype(">f4"),
    "complex": X.astype(np.complex64),
    "objects": X.astype(object),
    "records": np.zeros((2, 3), [("a", "f4")]),
    "dates": np.zeros((2, 3), "M8[s]"),
    "booleans": X > 0,
    "masked": np.ma.masked_less(X, 0),
    "flat": X.reshape(-1),
    "a batch too much": X[None],
    "transposed": X.T,
    "empty": np.zeros((0, 3), np.float32),
    "an array that is none": Raising(),
    "a class": np.ndarray,
    "a generator": (row for row in X),
}


@pytest.mark.parametrize("given", WRONG.values(), ids=list(WRONG))
def test_what_does_not_fit_is_one_clear_error(model: Model, given: Any) -> None:
    for call in (lambda: model(given), lambda: model.run({"x": given})):
        with pytest.raises(Error, match="input 'x': ") as caught:
            call()
        assert len(str(caught.value).splitlines()) <= 2


RIGHT = {
    "an array": X,
    "read-only": np.broadcast_to(X, X.shape),
    "by columns": np.asfortranarray(X),
    "every second": np.repeat(X, 2, axis=1)[:, ::2],
    "backwards": X[::-1, ::-1][::-1, ::-1],
    "a row many times": np.broadcast_to(X[0], (2, 3)),
    "not aligned": np.frombuffer(b"-" + X.tobytes(), np.float32, offset=1).reshape(2, 3),
    "none of it masked": np.ma.masked_less(X, -9),
    "rows": list(X),
    "scalars of numpy": [list(row) for row in X],
    "of another library": OnlyDLPack(X),
}


@pytest.mark.parametrize("given", RIGHT.values(), ids=list(RIGHT))
def test_what_holds_the_right_numbers_gives_the_right_answer(model: Model, given: Any) -> None:
    want = -np.asarray(given.array if isinstance(given, OnlyDLPack) else given)
    for found in (model(given), model.run({"x": given})["y"]):
        assert type(found) is np.ndarray
        np.testing.assert_array_equal(found, want)


@pytest.mark.parametrize(
    "given", [[X], (X,), X, None, 3, "x", iter([X]), {"x"}], ids=lambda g: type(g).__name__
)
def test_inputs_without_names_are_one_clear_error(model: Model, given: Any) -> None:
    for call in (model.run, model.profile):
        with pytest.raises(Error, match=r"\{input name: array\} wanted\nhint: .*model\(x, y\)"):
            call(given)


def test_unknown_inputs_are_named(model: Model) -> None:
    with pytest.raises(Error, match=r"unknown input \('a', 1\)"):
        model.run({"x": X, ("a", 1): X, 7: X})  # type: ignore[dict-item]
    with pytest.raises(Error, match="input 'x' is missing"):
        model.run({})
    for count in (0, 2):
        with pytest.raises(Error, match=f"{count} arrays for 1 inputs"):
            model(*[X] * count)


@pytest.mark.parametrize("kind", [OrderedDict, UserDict])
def test_any_mapping_names_inputs(model: Model, kind: Any) -> None:
    np.testing.assert_array_equal(model.run(kind(x=X))["y"], -X)


def test_an_input_without_dimensions_may_be_a_scalar() -> None:
    model = model_of([])
    for given in (np.float32(2), np.array(2, np.float32)):
        assert model(given) == -2
    for given in (2.0, 2, np.float64(2), np.zeros(1, np.float32)):
        with pytest.raises(Error, match="input 'x': "):
            model(given)


def test_one_array_may_be_several_inputs() -> None:
    graph = helper.make_graph(
        [helper.make_node("Sub", ["a", "b"], ["y"]), helper.make_node("Add", ["a", "b"], ["z"])],
        "both",
        [helper.make_tensor_value_info(n, 1, [2000, 9]) for n in "ab"],
        [helper.make_tensor_value_info(n, 1, None) for n in "yz"],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    x = np.random.default_rng(0).standard_normal((2000, 9)).astype(np.float32)
    before = x.copy()
    difference, both = load(compile(made, threads=1))(x, x)
    assert not difference.any()
    np.testing.assert_array_equal(both, 2 * before)
    np.testing.assert_array_equal(x, before)


def test_tensors_of_pytorch(model: Model) -> None:
    torch = pytest.importorskip("torch")
    x = torch.from_numpy(X.copy())
    np.testing.assert_array_equal(model(x), -X)
    np.testing.assert_array_equal(model(x.T.contiguous().T), -X)
    wrong = {
        "requires a gradient": x.clone().requires_grad_(),
        "a parameter": torch.nn.Parameter(x.clone()),
        "on no device": x.to("meta"),
        "bfloat16": x.bfloat16(),
        "sparse": x.to_sparse(),
        "negated when read": torch._neg_view(x),
        "conjugated when read": x.to(torch.complex64).conj(),
        "a list that requires a gradient": [x.clone().requires_grad_()],
    }
    for given in wrong.values():
        with pytest.raises(Error, match="input 'x': "):
            model(given)
    with pytest.raises(Error, match=r"detach\(\)"):
        model(wrong["a parameter"])
