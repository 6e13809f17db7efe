"""Sizes as exporters spell them: symbols, and sums, products and quotients of these."""

from __future__ import annotations

import onnx
import pytest
from onnx import TensorProto

from qcompiler.errors import Error
from qcompiler.onnx_io.dims import read_pinned
from qcompiler.onnx_io.inputs import input_types
from qcompiler.onnx_io.spellings import replaced, sizes_spelled


@pytest.mark.parametrize(
    ("spelled", "meant"),
    [
        ("past_sequence_length + sequence_length", "past_sequence_length + sequence_length"),
        ("past_sequence_length+sequence_length", "past_sequence_length + sequence_length"),
        ("sequence_length + past_sequence_length", "past_sequence_length + sequence_length"),
        ("past_sequence_length + 1", "past_sequence_length + 1"),
        ("2*sequence_length - 1", "2*sequence_length - 1"),
        ("sequence_length * (past_sequence_length - 1)", "past_sequence_length*sequence_length"
         " - sequence_length"),
        ("(sequence_length + 1)//2", "((sequence_length + 1)//(2))"),
        ("past-len + new.tokens", "new_tokens + past_len"),
        ("past-len - new.tokens", "-new_tokens + past_len"),
        ("kv length+2", "kv_length + 2"),
        ("past-len + new.tokens + 3", "new_tokens + past_len + 3"),
        ("Länge * 2", "2*L_nge"),
    ],
)  # fmt: skip
def test_an_expression_of_names_is_computed_from_them(spelled: str, meant: str) -> None:
    names = ["past_sequence_length", "sequence_length", "past-len", "new.tokens", "kv length",
             "past", "Länge", "past-len + new.tokens"]  # fmt: skip
    for order in ([*names, spelled], [spelled, *names]):
        assert sizes_spelled(order)[spelled] == meant


@pytest.mark.parametrize(
    ("spelled", "symbol"),
    [
        ("past + other", "past___other"),  # nothing has the size `other`
        ("past-len", "past_len"),  # nor has `len`
        ("pasts + 1", "pasts___1"),
        ("past / 2", "past___2"),  # how it rounds is not said
        ("past // 0", "past____0"),
        ("past +", "past__"),
        ("(past", "_past"),
        ("past) + (past", "past_____past"),
        ("past ** 2", "past____2"),
        ("-1", "_1"),
        ("3*4", "_3_4"),
        ("?", "_"),
        ("+".join(["past"] * 40), "_".join(["past"] * 40)),
    ],
)
def test_what_is_no_expression_of_names_is_a_name(spelled: str, symbol: str) -> None:
    found = sizes_spelled(["past", spelled])
    assert found == {"past": "past", spelled: symbol}


def test_different_names_are_different_symbols() -> None:
    found = sizes_spelled(["a.b", "a-b", "a_b", "a b"])
    assert len({str(size) for size in found.values()}) == 4


def test_symbols_are_replaced_in_expressions() -> None:
    assert replaced("past + new", {"past": 3}) == "new + 3"
    assert replaced("past + new", {"past": 3, "new": 2}) == 5
    assert replaced("past + new", {"past": "past - 1"}) == "new + past - 1"
    assert replaced("pasts + new_past", {"past": 3}) == "pasts + new_past"
    with pytest.raises(Error, match="divided by 0"):
        replaced("((past)//(new))", {"new": 0})


def model(**inputs: list[str | int]) -> onnx.ModelProto:
    """Each input added to itself."""
    value = onnx.helper.make_tensor_value_info
    taken = [value(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()]
    made = [value(f"{name}_twice", TensorProto.FLOAT, None) for name in inputs]
    nodes = [onnx.helper.make_node("Add", [n, n], [f"{n}_twice"]) for n in inputs]
    graph = onnx.helper.make_graph(nodes, "g", taken, made)
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)])


def test_pins_of_names_pin_what_is_computed_from_them() -> None:
    proto = model(mask=["batch", "past + new"], ids=["batch", "new"], past=[1, "past"])

    def shapes(pins: dict[str, tuple[int, ...]], dims: dict[str, int]) -> list[tuple[object, ...]]:
        return [n.type.shape for n in read_pinned(proto, pins, dims, False, {}).inputs]

    wanted = [(2, 7), (2, 3), (1, 4)]
    assert shapes({}, {"batch": 2, "past": 4, "new": 3}) == wanted
    assert shapes({"ids": (2, 3), "past": (1, 4)}, {}) == wanted
    assert shapes({"mask": (2, 7), "ids": (2, 3), "past": (1, 4)}, {}) == wanted
    with pytest.raises(Error, match=r"new \+ past is to be 8, and is 7"):
        shapes({"mask": (2, 8), "ids": (2, 3), "past": (1, 4)}, {})
    with pytest.raises(Error, match=r"new \+ past is to be 8, and is new \+ past"):
        shapes({"mask": (2, 8)}, {})
    with pytest.raises(Error, match="no input has an open size 'past___new'"):
        shapes({}, {"past___new": 7})
    less = model(x=["all"], y=["first"], z=["all - first"])
    with pytest.raises(Error, match="negative dimension"):
        read_pinned(less, {}, {"all": 2, "first": 3}, False, {})


def test_a_batch_alone_is_one_where_others_are_computed_from_it() -> None:
    proto = model(x=["batch", 3], y=["2*batch", 3])
    assert [n.type.shape for n in read_pinned(proto, {}, {}, True, {}).inputs] == [(1, 3), (2, 3)]
    assert input_types(proto.graph.input, {}, {})["y"].shape == ("2*batch", 3)
