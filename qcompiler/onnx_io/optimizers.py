"""Steps of optimizers (ai.onnx.preview.training) -> elementwise operators.

Each takes a learning rate, a count of updates, and for every tensor its values, gradients and
moments; it returns the new values of all tensors, then their new moments.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from qcompiler.ir import Node, constant
from qcompiler.onnx_io.call import Call, Result, always
from qcompiler.onnx_io.settle import plain

DOMAIN = "ai.onnx.preview.training"

Update = Callable[["_Step", Sequence[Node]], Sequence[Node]]
"""(the call, a tensor's values, gradients and moments) -> its new values and moments."""


class _Step:
    """A call while its nodes are made; arithmetic in the tensors' dtype."""

    def __init__(self, call: Call) -> None:
        self.s, self.call = plain(call), call
        self.dtype = call.need(2).dtype
        self.rate, self.count = (self._scalar(i) for i in (0, 1))

    def _scalar(self, index: int) -> Node:
        return self.s.node("Cast", self.s.scalar(self.call.need(index)), to=self.dtype)

    def number(self, value: float) -> Node:
        """A number of the tensors' dtype."""
        return constant(np.array(value).astype(self.dtype))

    def real(self, key: str) -> Node:
        """An attribute."""
        return self.number(self.call.real(key))

    def __call__(self, op: str, a: Node | float, b: Node | float) -> Node:
        """An operation of two values."""
        x, y = (i if isinstance(i, Node) else self.number(i) for i in (a, b))
        return self.s.node(op, x, y)

    def regularized(self, x: Node, gradient: Node) -> Node:
        """The gradient with that of the norm."""
        return self("Add", self("Mul", self.real("norm_coefficient"), x), gradient)

    def later(self, value: Node, first: Node) -> Node:
        """A value, or another before the first update."""
        return self.s.node("Where", self("Greater", self.count, 0.0), value, first)

    def each(self, update: Update, moments: int) -> Result:
        """All tensors updated, grouped by what is returned of them."""
        given = self.call.inputs[2:]
        n, parts = len(given) // (2 + moments), 2 + moments
        if n * parts != len(given) or any(i is None for i in given):
            raise self.call.error(f"{len(given)} tensors are not {parts} for each")
        rows = [
            update(self, [self.call.need(2 + part * n + i) for part in range(parts)])
            for i in range(n)
        ]
        return tuple(row[k] for k in range(1 + moments) for row in rows)


@always("Adagrad")
def _adagrad(call: Call) -> Result:
    def update(m: _Step, given: Sequence[Node]) -> Sequence[Node]:
        x, gradient, h = given
        slower = m("Add", 1.0, m("Mul", m.count, m.real("decay_factor")))
        rate, g = m("Div", m.rate, slower), m.regularized(x, gradient)
        new = m("Add", h, m("Mul", g, g))
        root = m("Add", m.s.node("Sqrt", new), m.real("epsilon"))
        return m("Sub", x, m("Div", m("Mul", rate, g), root)), new

    return _Step(call).each(update, 1)


@always("Momentum")
def _momentum(call: Call) -> Result:
    def update(m: _Step, given: Sequence[Node]) -> Sequence[Node]:
        x, gradient, v = given
        g, alpha = m.regularized(x, gradient), m.real("alpha")
        share = m.later(m.real("beta"), m.number(1.0))
        new = m("Add", m("Mul", alpha, v), m("Mul", share, g))
        nesterov = call.get("mode") == "nesterov"
        step = m("Add", g, m("Mul", alpha, new)) if nesterov else new
        return m("Sub", x, m("Mul", m.rate, step)), new

    return _Step(call).each(update, 1)


@always("Adam")
def _adam(call: Call) -> Result:
    def update(m: _Step, given: Sequence[Node]) -> Sequence[Node]:
        x, gradient, v, h = given
        g, alpha, beta = m.regularized(x, gradient), m.real("alpha"), m.real("beta")
        first = m("Add", m("Mul", alpha, v), m("Mul", m("Sub", 1.0, alpha), g))
        second = m("Mul", m("Sub", 1.0, beta), m("Mul", g, g))
        second = m("Add", m("Mul", beta, h), second)
        root = m("Add", m.s.node("Sqrt", second), m.real("epsilon"))
        less = [m("Sub", 1.0, m("Pow", decay, m.count)) for decay in (alpha, beta)]
        corrected = m("Div", m("Mul", m.rate, m.s.node("Sqrt", less[1])), less[0])
        rate = m.later(corrected, m.rate)
        made = m("Sub", x, m("Mul", rate, m("Div", first, root)))
        kept = m("Sub", 1.0, m.real("norm_coefficient_post"))
        return m("Mul", kept, made), first, second

    return _Step(call).each(update, 2)
