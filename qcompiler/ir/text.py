"""Graph -> text, and text -> the same graph.

    graph "net" (%x: float32[1,8]) {
      %w: float32[8,4] = constant #w
      %0: float32[1,4] = MatMul(%x, %w) "layer/matmul"
      %y: float32[1,4] = Relu(%0)
      return y=%y
    }

Constants of at most 16 elements are printed in place; larger ones appear as `#name`, and `write`
returns their arrays with the text. An absent optional input is `_`. An omitted type is inferred,
if the reader is given a `make`. The body of a loop stands among its attributes: `body=graph ...`.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from qcompiler.errors import Error
from qcompiler.ir import Array, Attr, Dim, Graph, Node, Type, constant, numpy_dtype, placeholder

Make = Callable[..., Node]
"""(operator, *inputs, name=, **attributes) -> a typed node with all attributes: `ops.make`."""

INLINE_ELEMENTS = 16

_TOKEN = re.compile(
    r"\s*(?:(?P<value>%[\w./-]+)|(?P<ref>#[\w./-]+)|(?P<string>\"(?:[^\"\\]|\\.)*\")"
    r"|(?P<number>-?(?:inf|nan|\d+\.?\d*(?:[eE][+-]?\d+)?)(?![\w.]))|(?P<word>[A-Za-z_?]\w*)|(?P<mark>[(){}\[\]=:,]))"
)


def write(graph: Graph) -> tuple[str, dict[str, Array]]:
    """Graph -> (text, arrays of the constants printed as `#name`)."""
    arrays: dict[str, Array] = {}
    return f"{_text(graph, arrays)}\n", arrays


def _text(graph: Graph, arrays: dict[str, Array], within: str = "", margin: str = "") -> str:
    """A graph's text; `within` begins the names of its arrays, `margin` its lines but the first."""
    names = _value_names(graph)
    inputs = ", ".join(f"%{names[i]}: {i.type}{_suffix(i, names[i])}" for i in graph.inputs)
    lines = [f"graph {_quote(graph.name)} ({inputs}) {{"]
    for node in graph.nodes:
        if node.op == "input":
            continue
        name = names[node]
        types = ", ".join(map(str, node.types))
        types = types if len(node.types) == 1 else f"({types})"
        if node.is_constant:
            body = f"constant {_array(node.array, within + name, arrays)}"
        else:
            operands = ", ".join("_" if i is None else f"%{names[i]}" for i in node.inputs)
            attrs = ", ".join(
                f"{k}={_attr(v, f'{within}{name}.{k}', arrays, margin)}"
                for k, v in sorted(node.attrs.items())
            )
            body = f"{node.op}({operands})" + (f" {{{attrs}}}" if attrs else "")
        lines.append(f"{margin}  %{name}: {types} = {body}{_suffix(node, name)}")
    outputs = ", ".join(
        f"{_quote(n)}=%{names[o]}" for n, o in zip(graph.output_names, graph.outputs, strict=True)
    )
    return "\n".join([*lines, f"{margin}  return {outputs}", f"{margin}}}"])


def read(
    text: str,
    arrays: Mapping[str, Array] | Callable[[str, Type], Array] | None = None,
    make: Make | None = None,
) -> Graph:
    """Text -> graph. `arrays` gives the value of every `#name`.

    `make` builds the nodes whose types are omitted; they may omit attributes too.
    """
    return _Reader(text, arrays or {}, make).graph()


def _value_names(graph: Graph) -> dict[Node, str]:
    names: dict[Node, str] = {}
    taken: set[str] = set()
    count = 0
    for node in graph.nodes:
        name = re.sub(r"[^\w./-]", "_", node.name)
        if not name or name in taken or name.isdigit():
            while str(count) in taken:
                count += 1
            name, count = str(count), count + 1
        taken.add(name)
        names[node] = name
    return names


def _suffix(node: Node, name: str) -> str:
    """The node's own name, if it differs from the value's."""
    return f" {_quote(node.name)}" if node.name and (node.name != name or name.isdigit()) else ""


def _quote(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _number(value: object) -> str:
    if isinstance(value, (bool, np.bool_)):
        return "true" if value else "false"
    if isinstance(value, (int, np.integer)):
        return str(int(value))
    if isinstance(value, bytes | str):
        return _quote(value if isinstance(value, str) else value.decode())
    text = str(value)  # numpy prints the shortest text that round-trips
    return text if re.search(r"[.en]", text) else f"{text}.0"


def _array(array: Array, name: str, arrays: dict[str, Array]) -> str:
    if array.size > INLINE_ELEMENTS:
        arrays[name] = array
        return f"#{name}"
    return f"[{', '.join(_number(v) for v in array.ravel())}]"


def _attr(value: Attr, name: str, arrays: dict[str, Array], margin: str) -> str:
    if isinstance(value, Graph):
        return _text(value, arrays, f"{name}/", f"{margin}  ")
    if isinstance(value, np.ndarray):
        return f"{Type(value.dtype.name, value.shape)} {_array(value, name, arrays)}"
    if isinstance(value, tuple):
        return f"[{', '.join(_number(v) for v in value)}]"
    return "none" if value is None else _number(value)


class _Reader:
    """One pass over the tokens; errors give the line."""

    def __init__(
        self,
        text: str,
        arrays: Mapping[str, Array] | Callable[[str, Type], Array],
        make: Make | None,
    ) -> None:
        self.text = re.sub(r"(?m)^\s*//.*$", "", text)
        self.arrays = arrays
        self.make = make
        self.values: dict[str, Node] = {}
        self.at = 0
        self.kind, self.token = "", ""
        self.step()

    def step(self) -> str:
        """Return the current token and advance."""
        taken = self.token
        match = _TOKEN.match(self.text, self.at)
        if match is None or match.lastgroup is None:
            if self.text[self.at :].strip():
                raise self.error("unreadable text")
            self.kind, self.token = "end", ""
            return taken
        self.kind, self.token, self.at = match.lastgroup, match.group(match.lastgroup), match.end()
        return taken

    def error(self, what: str) -> Error:
        line = self.text.count("\n", 0, self.at) + 1
        return Error(f"{what} near {self.token!r}", where=f"graph text, line {line}")

    def expect(self, *tokens: str) -> None:
        for token in tokens:
            if self.token != token:
                raise self.error(f"expected {token!r}")
            self.step()

    def accept(self, token: str) -> bool:
        if self.token == token and self.kind != "string":
            self.step()
            return True
        return False

    def listed(self, close: str) -> Iterator[None]:
        """Yield before every comma-separated item up to `close`, and consume it."""
        while not self.accept(close):
            yield
            if self.token != close:
                self.expect(",")

    def string(self) -> str:
        if self.kind != "string":
            raise self.error("expected a quoted string")
        return str(ast.literal_eval(self.step()))

    def value_name(self) -> str:
        if self.kind != "value":
            raise self.error("expected a %value")
        return self.step()[1:]

    def value(self) -> Node:
        name = self.value_name()
        if name not in self.values:
            raise self.error(f"%{name} is used before its definition")
        return self.values[name]

    def type(self) -> Type:
        try:
            numpy_dtype(self.token)
        except TypeError as e:
            raise self.error("expected a type") from e
        dtype = self.step()
        self.expect("[")
        shape: list[Dim] = []
        for _ in self.listed("]"):
            shape.append(int(self.step()) if self.kind == "number" else self.step())
        return Type(dtype, tuple(shape))

    def types(self) -> tuple[Type, ...]:
        if self.accept("("):
            return tuple(self.type() for _ in self.listed(")"))
        return (self.type(),)

    def scalar(self) -> int | float | str:
        if self.kind == "string":
            return self.string()
        if self.token in ("true", "false"):
            return self.step() == "true"
        if self.kind != "number":
            raise self.error("expected a number or a string")
        token = self.step()
        return float(token) if re.search(r"[.enf]", token) else int(token)

    def array(self, type: Type) -> Array:
        if self.kind == "ref":
            name = self.step()[1:]
            if callable(self.arrays):
                return self.arrays(name, type)
            if name not in self.arrays:
                raise self.error(f"no array given for #{name}")
            return self.arrays[name]
        self.expect("[")
        values = [self.scalar() for _ in self.listed("]")]
        if len(values) != type.size:
            raise self.error(f"{len(values)} values for {type}")
        return np.array(values, dtype=numpy_dtype(type.dtype)).reshape(type.dims)

    def attr(self) -> Attr:
        if self.accept("["):
            values = [self.scalar() for _ in self.listed("]")]
            return tuple(values)  # type: ignore[return-value]
        if self.accept("none"):
            return None
        if self.token == "graph":
            around, self.values = self.values, {}
            try:
                return self.graph()
            finally:
                self.values = around
        if self.kind == "word" and self.token not in ("true", "false", "inf", "nan"):
            return self.array(self.type())
        return self.scalar()

    def graph(self) -> Graph:
        self.expect("graph")
        name = self.string() if self.kind == "string" else "main"
        self.expect("(")
        inputs = []
        for _ in self.listed(")"):
            value = self.value_name()
            self.expect(":")
            type = self.type()
            inputs.append(placeholder(self.string() if self.kind == "string" else value, type))
            self.values[value] = inputs[-1]
        self.expect("{")
        while not self.accept("return"):
            self.statement()
        names, outputs = [], []
        for _ in self.listed("}"):
            names.append(self.string() if self.kind == "string" else self.step())
            self.expect("=")
            outputs.append(self.value())
        return Graph(tuple(inputs), tuple(outputs), tuple(names), name)

    def statement(self) -> None:
        value = self.value_name()
        types = self.types() if self.accept(":") else None
        self.expect("=")
        op = self.step()
        if op == "constant":
            if types is None:
                raise self.error("a constant needs its type")
            array = self.array(types[0])
            node = constant(array)
            name = self.string() if self.kind == "string" else self._spelled(value)
            self.values[value] = Node("constant", (), node.attrs, types, name)
            return
        self.expect("(")
        inputs = [None if self.accept("_") else self.value() for _ in self.listed(")")]
        attrs: dict[str, Attr] = {}
        if self.accept("{"):
            for _ in self.listed("}"):
                key = self.step()
                self.expect("=")
                attrs[key] = self.attr()
        name = self.string() if self.kind == "string" else self._spelled(value)
        if types is not None:
            self.values[value] = Node(op, tuple(inputs), attrs, types, name)
        elif self.make is not None:
            self.values[value] = self.make(op, *inputs, name=name, **attrs)
        else:
            raise self.error(f"%{value} has no type")

    @staticmethod
    def _spelled(value: str) -> str:
        return "" if value.isdigit() else value
