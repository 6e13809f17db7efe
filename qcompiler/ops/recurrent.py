"""Layers that read a sequence step by step: RNN, GRU, LSTM.

x[T,batch,input], w[D,gates*H,input], r[D,gates*H,H] -> every hidden state [T,D,batch,H], and the
last states [D,batch,H]; layout=1 puts the batch first. D is 2 where both directions are read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from qcompiler.errors import Error
from qcompiler.ir import Dim, Node, Type
from qcompiler.ops.contraction import sums_of
from qcompiler.ops.elementwise import (
    elu,
    hard_sigmoid,
    leaky_relu,
    relu,
    sigmoid,
    softplus,
    softsign,
    tanh,
    thresholded_relu,
)
from qcompiler.ops.math import NUMPY
from qcompiler.ops.registry import Numbers, operator, optional, typed
from qcompiler.ops.shapes import agree, need_shape

Activation = Callable[[Numbers], Numbers]
State = tuple[Numbers, ...]
"""What a step hands to the next: the hidden state, an LSTM's cell after it."""
Step = Callable[[Numbers, State], State]

_ACTIVATIONS: dict[str, tuple[Callable[..., Numbers], tuple[float, ...]]] = {
    "relu": (lambda x: relu(NUMPY, x), ()),
    "tanh": (lambda x: tanh(NUMPY, x), ()),
    "sigmoid": (lambda x: sigmoid(NUMPY, x), ()),
    "softsign": (lambda x: softsign(NUMPY, x), ()),
    "softplus": (lambda x: softplus(NUMPY, x), ()),
    "leakyrelu": (lambda x, a: leaky_relu(NUMPY, x, alpha=a), (0.01,)),
    "thresholdedrelu": (lambda x, a: thresholded_relu(NUMPY, x, alpha=a), (1.0,)),
    "elu": (lambda x, a: elu(NUMPY, x, alpha=a), (1.0,)),
    "affine": (lambda x, a, b: x * a + b, (1.0, 0.0)),
    "scaledtanh": (lambda x, a, b: tanh(NUMPY, x * b) * a, (1.0, 1.0)),
    "hardsigmoid": (lambda x, a, b: hard_sigmoid(NUMPY, x, alpha=a, beta=b), (0.2, 0.5)),
}
"""Name -> function, and the defaults of its alpha and beta."""

_DEFAULTS = {"RNN": ("Tanh",), "GRU": ("Sigmoid", "Tanh"), "LSTM": ("Sigmoid", "Tanh", "Tanh")}
_GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
_COMMON = {
    "activation_alpha": None,
    "activation_beta": None,
    "activations": None,
    "clip": None,
    "direction": "forward",
    "hidden_size": None,
    "layout": 0,
}


def _activations(node: Node, directions: int) -> list[list[Activation]]:
    """The functions of each direction; alpha and beta go in order to those that take them."""
    names = node.attrs["activations"]
    each = _DEFAULTS[node.op]
    listed = [str(n) for n in names] if isinstance(names, tuple) and names else [*each] * directions
    alphas, betas = (_floats(node, k) for k in ("activation_alpha", "activation_beta"))
    if len(listed) < len(each) * directions:
        raise Error(f"{len(listed)} activations where {len(each) * directions} are needed")
    made = [_activation(node, name, alphas, betas) for name in listed]
    return [made[i * len(each) : (i + 1) * len(each)] for i in range(directions)]


def _activation(node: Node, name: str, alphas: list[float], betas: list[float]) -> Activation:
    if name.lower() not in _ACTIVATIONS:
        raise Error(f"unknown activation {name!r}")
    function, defaults = _ACTIVATIONS[name.lower()]
    sources = zip((alphas, betas), defaults, strict=False)
    given = [source.pop(0) if source else default for source, default in sources]
    clip = None if node.attrs["clip"] is None else abs(node.float("clip"))

    def apply(x: Numbers) -> Numbers:
        return function(x if clip is None else np.clip(x, -clip, clip), *given)

    return apply


def _floats(node: Node, key: str) -> list[float]:
    value = node.attrs[key]
    return [float(v) for v in value] if isinstance(value, tuple) else []


def _backwards(x: Numbers, lengths: Numbers) -> Numbers:
    """The first `lengths` steps of each sequence of x[T,batch,...] in reverse order."""
    steps = np.arange(len(x)).reshape(-1, 1)
    order = np.where(steps < lengths, lengths - 1 - steps, steps)
    return np.take_along_axis(x, order.reshape(*order.shape, *[1] * (x.ndim - 2)), 0)


def _scan(
    node: Node,
    x: Numbers,
    lengths: Numbers | None,
    states: Sequence[Numbers],
    steps: Sequence[Step],
) -> tuple[Numbers, ...]:
    """Every direction over the sequence -> [T,D,batch,H] and the last states [D,batch,H]."""
    ends = np.full(x.shape[1], len(x)) if lengths is None else lengths.astype(np.int64)
    rows, finals = [], []
    for direction, step in enumerate(steps):
        back = direction == 1 or node.str("direction") == "reverse"
        state: State = tuple(s[direction] for s in states)
        hidden = np.zeros((len(x), *state[0].shape), state[0].dtype)
        for t, values in enumerate(_backwards(x, ends) if back else x):
            live = (t < ends).reshape(-1, 1)
            pairs = zip(step(values, state), state, strict=True)
            state = tuple(np.where(live, new, old) for new, old in pairs)
            hidden[t] = np.where(live, state[0], 0)
        rows.append(_backwards(hidden, ends) if back else hidden)
        finals.append(state)
    return np.stack(rows, 1), *(np.stack(s) for s in zip(*finals, strict=True))


def _run(
    node: Node,
    x: Numbers,
    r: Numbers,
    lengths: Numbers | None,
    initial: Sequence[Numbers | None],
    step_of: Callable[[int, Sequence[Activation]], Step],
) -> tuple[Numbers, ...]:
    """`step_of(direction, its activations)` over x -> the outputs, in the node's layout."""
    batch_first, dtype = bool(node.int("layout")), sums_of(x.dtype.name)
    wide = np.swapaxes(x, 0, 1) if batch_first else x
    states = []
    for state in initial:
        given = np.zeros((len(r), x.shape[0 if batch_first else 1], r.shape[-1]))
        if state is not None:
            given = np.swapaxes(state, 0, 1) if batch_first else state
        states.append(given.astype(dtype))
    steps = [step_of(i, fs) for i, fs in enumerate(_activations(node, len(r)))]
    hidden, *last = _scan(node, wide.astype(dtype), lengths, states, steps)
    if batch_first:
        hidden, last = np.moveaxis(hidden, 2, 0), [np.swapaxes(s, 0, 1) for s in last]
    return tuple(o.astype(x.dtype) for o in (hidden, *last))


def _biases(b: Numbers | None, r: Numbers) -> tuple[Numbers, Numbers]:
    """The biases of w and of r, each [D, gates*H]."""
    both = np.zeros((len(r), 2 * r.shape[1]), r.dtype) if b is None else b
    first, second = np.split(both.astype(sums_of(r.dtype.name)), 2, 1)
    return first, second


@operator("RNN", **{**_COMMON, "activations": ("Tanh", "Tanh")})
def rnn(
    node: Node,
    x: Numbers,
    w: Numbers,
    r: Numbers,
    b: Numbers | None = None,
    lengths: Numbers | None = None,
    h0: Numbers | None = None,
) -> tuple[Numbers, ...]:
    bw, br = _biases(b, r)

    def step_of(i: int, functions: Sequence[Activation]) -> Step:
        def step(x: Numbers, state: State) -> State:
            return (functions[0](x @ w[i].T + state[0] @ r[i].T + bw[i] + br[i]),)

        return step

    return _run(node, x, r, lengths, (h0,), step_of)


@operator("GRU", **_COMMON, linear_before_reset=0)
def gru(
    node: Node,
    x: Numbers,
    w: Numbers,
    r: Numbers,
    b: Numbers | None = None,
    lengths: Numbers | None = None,
    h0: Numbers | None = None,
) -> tuple[Numbers, ...]:
    bw, br = _biases(b, r)
    size = r.shape[-1]

    def step_of(i: int, functions: Sequence[Activation]) -> Step:
        gate, candidate = functions
        inner, outer = r[i, : 2 * size].T, r[i, 2 * size :].T

        def step(x: Numbers, state: State) -> State:
            (h,) = state
            new = x @ w[i].T + bw[i]
            gates = gate(new[:, : 2 * size] + h @ inner + br[i, : 2 * size])
            update, reset = gates[:, :size], gates[:, size:]
            bias = br[i, 2 * size :]
            if node.int("linear_before_reset"):
                made = candidate(new[:, 2 * size :] + reset * (h @ outer + bias))
            else:
                made = candidate(new[:, 2 * size :] + (reset * h) @ outer + bias)
            return ((1 - update) * made + update * h,)

        return step

    return _run(node, x, r, lengths, (h0,), step_of)


@operator("LSTM", **_COMMON, input_forget=0)
def lstm(
    node: Node,
    x: Numbers,
    w: Numbers,
    r: Numbers,
    b: Numbers | None = None,
    lengths: Numbers | None = None,
    h0: Numbers | None = None,
    c0: Numbers | None = None,
    peepholes: Numbers | None = None,
) -> tuple[Numbers, ...]:
    bw, br = _biases(b, r)
    size = r.shape[-1]
    p = np.zeros((len(r), 3 * size), bw.dtype) if peepholes is None else peepholes

    def step_of(i: int, functions: Sequence[Activation]) -> Step:
        gate, candidate, squash = functions
        p_in, p_out, p_forget = np.split(p[i], 3)

        def step(x: Numbers, state: State) -> State:
            h, c = state
            gates = x @ w[i].T + h @ r[i].T + bw[i] + br[i]
            enter, leave, keep, new = np.split(gates, 4, -1)
            enter = gate(enter + p_in * c)
            keep = 1 - enter if node.int("input_forget") else gate(keep + p_forget * c)
            c = keep * c + enter * candidate(new)
            return gate(leave + p_out * c) * squash(c), c

        return step

    return _run(node, x, r, lengths, (h0, c0), step_of)


@typed(rnn, gru, lstm)
def _(node: Node) -> tuple[Type, ...]:
    x, w, r = (i.type for i in node.operands[:3])
    if x.rank != 3 or w.rank != 3 or r.rank != 3:
        raise Error(f"{x}, {w} and {r} are not of three dimensions")
    if node.str("direction") not in ("forward", "reverse", "bidirectional"):
        raise Error(f"unknown direction {node.str('direction')!r}")
    directions = 2 if node.str("direction") == "bidirectional" else 1
    time, batch = (1, 0) if node.int("layout") else (0, 1)
    hidden, gates = r.shape[2], _GATES[node.op]
    if not isinstance(hidden, int) or not agree(hidden, node.attrs["hidden_size"] or hidden):  # type: ignore[arg-type]
        raise Error(f"{r} is not of hidden size {node.attrs['hidden_size']}")
    need_shape(node.operands[1], (directions, gates * hidden, x.shape[2]), "weights")
    need_shape(node.operands[2], (directions, gates * hidden, hidden), "recurrent weights")
    need_shape(optional(node, 3), (directions, 2 * gates * hidden), "bias")
    need_shape(optional(node, 4), (x.shape[batch],), "sequence lengths")
    state: tuple[Dim, ...] = (directions, x.shape[batch], hidden)
    whole: tuple[Dim, ...] = (x.shape[time], *state)
    if node.int("layout"):
        state, whole = (state[1], state[0], state[2]), (whole[2], whole[0], whole[1], whole[3])
    need_shape(optional(node, 5), state, "initial state")
    need_shape(optional(node, 6), state, "initial cell")
    need_shape(optional(node, 7), (directions, 3 * hidden), "peepholes")
    _activations(node, directions)
    outputs = 3 if node.op == "LSTM" else 2
    return Type(x.dtype, whole), *[Type(x.dtype, state)] * (outputs - 1)
