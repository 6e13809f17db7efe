"""Recurrent layers: RNN, GRU, LSTM, and `recurrent`, the loop inside them.

RNN, GRU, LSTM  x[T,batch,input], w[D,gates*H,input], r[D,gates*H,H] -> every hidden state
                [T,D,batch,H], and the last states [D,batch,H]; layout=1 puts the batch first
recurrent       the input's and the biases' part of every gate [T,batch,D*gates*H], r[D,H,gates*H]
                -> hidden states, last hidden state, LSTM's last cell: [T+1 or T+2,D,batch,H]

D is 2 for bidirectional layers. The compiler lowers the others to a product and a `recurrent`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

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
from qcompiler.ops.registry import Numbers, operator, optional, required, typed
from qcompiler.ops.shapes import agree, need_shape, together, unite

State = tuple[Numbers, ...]
"""The state carried between steps: the hidden state, and an LSTM's cell."""
Step = Callable[[Numbers, State], State]

_ACTIVATIONS: dict[str, tuple[Callable[..., Any], tuple[float, ...]]] = {
    "relu": (relu, ()),
    "tanh": (tanh, ()),
    "sigmoid": (sigmoid, ()),
    "softsign": (softsign, ()),
    "softplus": (softplus, ()),
    "leakyrelu": (lambda m, x, a: leaky_relu(m, x, alpha=a), (0.01,)),
    "thresholdedrelu": (lambda m, x, a: thresholded_relu(m, x, alpha=a), (1.0,)),
    "elu": (lambda m, x, a: elu(m, x, alpha=a), (1.0,)),
    "affine": (lambda m, x, a, b: x * a + b, (1.0, 0.0)),
    "scaledtanh": (lambda m, x, a, b: tanh(m, x * b) * a, (1.0, 1.0)),
    "hardsigmoid": (lambda m, x, a, b: hard_sigmoid(m, x, alpha=a, beta=b), (0.2, 0.5)),
}
"""Name -> formula, and the defaults of its alpha and beta."""

_DEFAULTS = {"RNN": ("Tanh",), "GRU": ("Sigmoid", "Tanh"), "LSTM": ("Sigmoid", "Tanh", "Tanh")}
GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
_COMMON = {
    "activation_alpha": None,
    "activation_beta": None,
    "activations": None,
    "clip": None,
    "direction": "forward",
}
_LAYER = {**_COMMON, "hidden_size": None, "layout": 0}


@dataclass(frozen=True)
class Activation:
    """A gate's activation function: its name, parameters and clipping bound."""

    name: str
    numbers: tuple[float, ...]
    clip: float | None

    def __call__(self, m: Any, x: Any) -> Any:
        """Apply it to values of the arithmetic `m` (ops/math.py)."""
        bounded = x if self.clip is None else m.clip(x, -self.clip, self.clip)
        return _ACTIVATIONS[self.name][0](m, bounded, *self.numbers)


def kind_of(node: Node) -> str:
    """ "RNN", "GRU" or "LSTM"."""
    return node.str("kind") if node.op == "recurrent" else node.op


def directions(node: Node) -> int:
    """Number of directions: 2 if bidirectional."""
    return 2 if node.str("direction") == "bidirectional" else 1


def activations(node: Node) -> list[list[Activation]]:
    """The functions of each direction; alpha and beta go in order to those that use them."""
    names, count = node.attrs["activations"], directions(node)
    each = _DEFAULTS[kind_of(node)]
    listed = [str(n) for n in names] if isinstance(names, tuple) and names else [*each] * count
    alphas, betas = (_floats(node, k) for k in ("activation_alpha", "activation_beta"))
    if len(listed) < len(each) * count:
        raise Error(f"{len(listed)} activations where {len(each) * count} are needed")
    made = [_activation(node, name.lower(), alphas, betas) for name in listed]
    return [made[i * len(each) : (i + 1) * len(each)] for i in range(count)]


def _activation(node: Node, name: str, alphas: list[float], betas: list[float]) -> Activation:
    if name not in _ACTIVATIONS:
        raise Error(f"unknown activation {name!r}")
    sources = zip((alphas, betas), _ACTIVATIONS[name][1], strict=False)
    given = [source.pop(0) if source else default for source, default in sources]
    clip = None if node.attrs["clip"] is None else abs(node.float("clip"))
    return Activation(name, tuple(given), clip)


def _floats(node: Node, key: str) -> list[float]:
    value = node.attrs[key]
    return [float(v) for v in value] if isinstance(value, tuple) else []


# The numpy definition.


def _backwards(x: Numbers, lengths: Numbers) -> Numbers:
    """The first `lengths` steps of each sequence of x[T,batch,...] in reverse order."""
    steps = np.arange(len(x)).reshape(-1, 1)
    order = np.where(steps < lengths, lengths - 1 - steps, steps)
    return np.take_along_axis(x, order.reshape(*order.shape, *[1] * (x.ndim - 2)), 0)


def _scan(
    node: Node,
    sums: Numbers,
    lengths: Numbers | None,
    states: Sequence[Numbers],
    steps: Sequence[Step],
) -> tuple[Numbers, ...]:
    """All directions over sums[T,batch,D,gates*H] -> [T,D,batch,H], and the last states
    [D,batch,H]."""
    ends = np.full(sums.shape[1], len(sums)) if lengths is None else lengths.astype(np.int64)
    rows, finals = [], []
    for direction, step in enumerate(steps):
        back = direction == 1 or node.str("direction") == "reverse"
        x = sums[:, :, direction]
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


def _rnn_step(node: Node, functions: Sequence[Activation], r: Numbers, *_: Numbers) -> Step:
    def step(x: Numbers, state: State) -> State:
        return (functions[0](NUMPY, x + state[0] @ r),)

    return step


def _gru_step(
    node: Node, functions: Sequence[Activation], r: Numbers, bias: Numbers, _: Numbers
) -> Step:
    gate, candidate = functions
    size = len(r)
    inner, outer = r[:, : 2 * size], r[:, 2 * size :]

    def step(x: Numbers, state: State) -> State:
        (h,) = state
        gates = gate(NUMPY, x[:, : 2 * size] + h @ inner)
        update, reset = gates[:, :size], gates[:, size:]
        if node.int("linear_before_reset"):
            made = candidate(NUMPY, x[:, 2 * size :] + reset * (h @ outer + bias))
        else:
            made = candidate(NUMPY, x[:, 2 * size :] + (reset * h) @ outer + bias)
        return ((1 - update) * made + update * h,)

    return step


def _lstm_step(
    node: Node, functions: Sequence[Activation], r: Numbers, _: Numbers, peepholes: Numbers
) -> Step:
    gate, candidate, squash = functions
    p_in, p_out, p_forget = np.split(peepholes, 3)

    def step(x: Numbers, state: State) -> State:
        h, c = state
        enter, leave, keep, new = np.split(x + h @ r, 4, -1)
        enter = gate(NUMPY, enter + p_in * c)
        keep = 1 - enter if node.int("input_forget") else gate(NUMPY, keep + p_forget * c)
        c = keep * c + enter * candidate(NUMPY, new)
        return gate(NUMPY, leave + p_out * c) * squash(NUMPY, c), c

    return step


_STEPS: dict[str, Callable[..., Step]] = {"RNN": _rnn_step, "GRU": _gru_step, "LSTM": _lstm_step}


@operator("recurrent", kind=required(), **_COMMON, linear_before_reset=0, input_forget=0)
def recurrent(
    node: Node,
    sums: Numbers,
    r: Numbers,
    bias: Numbers | None = None,
    lengths: Numbers | None = None,
    h0: Numbers | None = None,
    c0: Numbers | None = None,
    peepholes: Numbers | None = None,
) -> Numbers:
    """`bias` [D,H]: only for a GRU, the recurrent bias of its candidate."""
    count, size, _ = r.shape
    dtype = sums_of(sums.dtype.name)
    state = (count, sums.shape[1], size)
    initial = [h0, c0][: states_of(node)]
    states = [np.zeros(state, dtype) if s is None else s.astype(dtype) for s in initial]
    behind = np.zeros((count, size), dtype) if bias is None else bias.astype(dtype)
    p = np.zeros((count, 3 * size), dtype) if peepholes is None else peepholes.astype(dtype)
    steps = [
        _STEPS[kind_of(node)](node, functions, r[i].astype(dtype), behind[i], p[i])
        for i, functions in enumerate(activations(node))
    ]
    split = sums.astype(dtype).reshape(*sums.shape[:2], count, -1)
    hidden, *last = _scan(node, split, lengths, states, steps)
    return np.concatenate([hidden, *(s[None] for s in last)]).astype(sums.dtype)


def states_of(node: Node) -> int:
    """Number of states carried between steps."""
    return 2 if kind_of(node) == "LSTM" else 1


@typed(recurrent)
def _(node: Node) -> Type:
    sums, r = (i.type for i in node.operands[:2])
    if sums.rank != 3 or r.rank != 3 or node.str("kind") not in GATES:
        raise Error(f"{node.attrs['kind']} of {sums} and {r}")
    count, hidden, wide = r.shape
    if not isinstance(hidden, int) or wide != GATES[node.str("kind")] * hidden:
        raise Error(f"{r} is not of hidden size {hidden}")
    time, batch, _ = sums.shape
    need_shape(node.operands[0], (time, batch, directions(node) * wide), "sums")
    need_shape(node.operands[1], (directions(node), hidden, wide), "recurrent weights")
    need_shape(optional(node, 2), (count, hidden), "bias")
    need_shape(optional(node, 3), (batch,), "sequence lengths")
    need_shape(optional(node, 4), (count, batch, hidden), "initial state")
    need_shape(optional(node, 5), (count, batch, hidden), "initial cell")
    need_shape(optional(node, 6), (count, 3 * hidden), "peepholes")
    activations(node)
    return Type(sums.dtype, (together((time, states_of(node))), count, batch, hidden))


# The layers of ONNX.


def _layer(
    node: Node,
    x: Numbers,
    w: Numbers,
    r: Numbers,
    b: Numbers | None,
    lengths: Numbers | None,
    initial: Sequence[Numbers | None],
    peepholes: Numbers | None = None,
) -> tuple[Numbers, ...]:
    """A product over the whole sequence, then `recurrent`, in the node's layout."""
    batch_first, dtype = bool(node.int("layout")), sums_of(x.dtype.name)
    wide = (np.swapaxes(x, 0, 1) if batch_first else x).astype(dtype)
    size, gates = r.shape[-1], GATES[node.op]
    both = np.zeros((len(r), 2 * gates * size), dtype) if b is None else b.astype(dtype)
    outer, inner = both[:, : gates * size].copy(), both[:, gates * size :]
    behind = None
    if node.op == "GRU" and node.int("linear_before_reset"):
        behind = inner[:, 2 * size :]
        inner = np.concatenate([inner[:, : 2 * size], np.zeros_like(behind)], 1)
    sums = wide @ w.astype(dtype).reshape(-1, w.shape[2]).T + (outer + inner).reshape(-1)
    states = [None if s is None else np.swapaxes(s, 0, 1) if batch_first else s for s in initial]
    states += [None] * (2 - len(states))
    attrs = {k: v for k, v in node.attrs.items() if k not in ("hidden_size", "layout")}
    defaults = {"linear_before_reset": 0, "input_forget": 0}
    own = Node("recurrent", (), {**defaults, **attrs, "kind": node.op}, ())
    rows = recurrent(own, sums, np.swapaxes(r, 1, 2), behind, lengths, *states, peepholes)
    assert isinstance(rows, np.ndarray)
    hidden, last = rows[: len(wide)], list(rows[len(wide) :])
    if batch_first:
        hidden, last = np.moveaxis(hidden, 2, 0), [np.swapaxes(s, 0, 1) for s in last]
    return tuple(o.astype(x.dtype) for o in (hidden, *last))


@operator("RNN", **{**_LAYER, "activations": ("Tanh", "Tanh")})
def rnn(
    node: Node,
    x: Numbers,
    w: Numbers,
    r: Numbers,
    b: Numbers | None = None,
    lengths: Numbers | None = None,
    h0: Numbers | None = None,
) -> tuple[Numbers, ...]:
    return _layer(node, x, w, r, b, lengths, (h0,))


@operator("GRU", **_LAYER, linear_before_reset=0)
def gru(
    node: Node,
    x: Numbers,
    w: Numbers,
    r: Numbers,
    b: Numbers | None = None,
    lengths: Numbers | None = None,
    h0: Numbers | None = None,
) -> tuple[Numbers, ...]:
    return _layer(node, x, w, r, b, lengths, (h0,))


@operator("LSTM", **_LAYER, input_forget=0)
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
    return _layer(node, x, w, r, b, lengths, (h0, c0), peepholes)


@typed(rnn, gru, lstm)
def _(node: Node) -> tuple[Type, ...]:
    x, w, r = (i.type for i in node.operands[:3])
    if x.rank != 3 or w.rank != 3 or r.rank != 3:
        raise Error(f"{x}, {w} and {r} do not have three dimensions")
    if node.str("direction") not in ("forward", "reverse", "bidirectional"):
        raise Error(f"unknown direction {node.str('direction')!r}")
    count = directions(node)
    time, batch = (1, 0) if node.int("layout") else (0, 1)
    hidden, gates = r.shape[2], GATES[node.op]
    wanted = node.int("hidden_size") if node.attrs["hidden_size"] else hidden
    hidden = unite(hidden, wanted) if agree(hidden, wanted) else ""
    if not isinstance(hidden, int):
        raise Error(f"{r} is not of hidden size {node.attrs['hidden_size']}")
    need_shape(node.operands[1], (count, gates * hidden, x.shape[2]), "weights")
    need_shape(node.operands[2], (count, gates * hidden, hidden), "recurrent weights")
    need_shape(optional(node, 3), (count, 2 * gates * hidden), "bias")
    need_shape(optional(node, 4), (x.shape[batch],), "sequence lengths")
    state: tuple[Dim, ...] = (count, x.shape[batch], hidden)
    whole: tuple[Dim, ...] = (x.shape[time], *state)
    if node.int("layout"):
        state, whole = (state[1], state[0], state[2]), (whole[2], whole[0], whole[1], whole[3])
    need_shape(optional(node, 5), state, "initial state")
    need_shape(optional(node, 6), state, "initial cell")
    need_shape(optional(node, 7), (count, 3 * hidden), "peepholes")
    activations(node)
    outputs = 3 if node.op == "LSTM" else 2
    return Type(x.dtype, whole), *[Type(x.dtype, state)] * (outputs - 1)
