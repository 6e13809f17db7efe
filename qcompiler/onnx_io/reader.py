"""ONNX file -> graph in ONNX's newest operator set. No policy: nothing is optimized or chosen here.

A file is untrusted. Any defect of it raises one `Error`; everything unsupported is reported at
once. Nothing of it reaches onnx's native checker or shape inference, and memory is only allocated
for data the file contains.

Functions and Ifs with a constant condition are inlined; inputs with an initializer are constants;
nodes that no output needs are not read. Differences between opsets are handled in `opsets`, ONNX's
schemas in `schema`, inputs in `inputs`, tensors in `tensors`.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path

from onnx import (
    AttributeProto,
    FunctionProto,
    GraphProto,
    ModelProto,
    NodeProto,
    SparseTensorProto,
    TensorProto,
)

from qcompiler.artifact.sizes import Size
from qcompiler.errors import Error
from qcompiler.ir import CHECK, SELECTED, Dim, Graph, Node, Type, constant, placeholder
from qcompiler.ir.refusals import with_open_sizes

# Importing them registers their adapters.
from qcompiler.onnx_io import (  # noqa: F401
    axes,
    carried_by_index,
    carried_images,
    carried_parts,
    carried_shapes,
    contrib,
    control,
    equal,
    indexed,
    oldest,
    opsets,
    optimizers,
    rare,
    resizing,
    selecting,
    sequences,
    spectra,
    windows,
)
from qcompiler.onnx_io.bounded import Bounds
from qcompiler.onnx_io.call import Call, Malformed, adapted, finish, newest
from qcompiler.onnx_io.carried import applied
from qcompiler.onnx_io.checks import Checks
from qcompiler.onnx_io.computed import note_computed
from qcompiler.onnx_io.control import controlled
from qcompiler.onnx_io.file import functions_of, initializers, load, opset_versions
from qcompiler.onnx_io.functions import body_of, has_function
from qcompiler.onnx_io.inputs import MAX_NAME, checked_name, first_double, input_types
from qcompiler.onnx_io.pins import Pins, pinned
from qcompiler.onnx_io.ranges import Ranges, by_ranges, largest
from qcompiler.onnx_io.rolled import attempted
from qcompiler.onnx_io.schema import (
    bound,
    check_inputs,
    checked_attributes,
    constant_of,
    schema,
    value_of,
)
from qcompiler.onnx_io.scope import Missing, Scope, Value
from qcompiler.onnx_io.sequences import Absent, Held, Items, Pieces, outputs_of
from qcompiler.onnx_io.settle import Settling, Stated, declared, settled, settling, spread, stated
from qcompiler.onnx_io.structure import (
    MAX_DEPTH,
    MAX_GROWTH,
    MAX_MADE,
    MAX_NODES,
    FunctionKey,
    all_nodes,
    check_text,
    domain_of,
    expanded_size,
    needed,
    reads,
)
from qcompiler.onnx_io.tensors import ExternalData, Unsupported, decode, dense
from qcompiler.onnx_io.unsupported import demand_supported
from qcompiler.ops import OPERATORS, known_value, make
from qcompiler.ops.equal import Equal, noted

log = logging.getLogger(__name__)

_PREVIEWS = ("", "ai.onnx.preview", optimizers.DOMAIN)
"""Domains whose operators ONNX defines."""


def read(
    model: str | Path | ModelProto,
    input_shapes: Mapping[str, tuple[int, ...]] | None = None,
    settle: Callable[[dict[str, Type]], dict[str, Type]] = dict,
    rolls: bool = True,
    sizes: equal.Sizes | None = None,
    ranges: Ranges | None = None,
) -> Graph:
    """ONNX file or ModelProto -> graph.

    `input_shapes` pins the unknown dimensions of inputs, {"x": (1, 3, 224, 224)}; a symbol pinned
    in one input is pinned everywhere. `settle` may change the input types before nodes are made;
    `rolls`: long loops may stay loops. `sizes`: open sizes that may turn out to equal others;
    `ranges`: what every symbol in the input types may be.
    Raises Error for every defect or unsupported feature.
    """
    if not isinstance(model, (str, Path, ModelProto)):
        what = f"{type(model).__name__} given, an ONNX file or onnx.ModelProto wanted"
        raise Error(what, hint="a PyTorch module is exported by torch.onnx.export first")
    path = None if isinstance(model, ModelProto) else Path(model)
    proto = model if isinstance(model, ModelProto) else load(Path(model))
    check_text(proto)

    def made(pins: Pins, known: equal.Settled, found: Equal | None = None) -> Graph:
        found = found or Equal()
        reader = _Reader(proto, ExternalData(path), rolls, known, found, ranges or {})
        with noted(found if sizes or ranges else None):
            graph = reader.graph(input_shapes or {}, settle, pins)
        return equal.checked(graph, found, known, ranges or {})

    graph, known = equal.with_equal_sizes(partial(made, {}), sizes or {})
    return pinned(graph, proto.graph, partial(made, known=known))


class _Reader:
    """The conversion of one model."""

    def __init__(
        self,
        model: ModelProto,
        external: ExternalData,
        rolls: bool,
        known: equal.Settled,
        found: Equal,
        ranges: Ranges,
    ) -> None:
        """`known`: sizes that equal others; `found`: where more of them are noted; `ranges`: what
        open sizes may be.
        """
        if not model.HasField("graph") or not model.graph.output:
            raise Error("not an ONNX model: it has no graph with outputs")
        self.model = model
        self.external = external
        self.rolls = rolls
        self.known, self.found, self.ranges = known, found, ranges
        self.opsets = opset_versions(model.opset_import)
        self.functions = functions_of(model)
        self.sizes: dict[FunctionKey, int] = {}
        self.unsupported: dict[tuple[str, str], list[str]] = {}
        self.names: dict[str, int] = {}  # the last suffix given to each name
        self.count = 0
        self.checks = Checks()
        self.require = self.checks.require
        self.bounds = Bounds(self.checks)
        self.size: Callable[[Dim], Node] = partial(equal.size_node, owners={})
        listed = sum(1 for _ in all_nodes(model.graph.node))
        self.most = min(MAX_MADE + MAX_GROWTH * listed, MAX_NODES)

    def graph(
        self,
        input_shapes: Mapping[str, tuple[int, ...]],
        settle: Callable[[dict[str, Type]], dict[str, Type]],
        pins: Pins,
    ) -> Graph:
        """The model's graph. Raises an Error that lists everything unsupported."""
        proto = self.model.graph
        scope = Scope(self.opsets, initializers=initializers(proto))
        infos, shapes, held = sequences.flattened(proto.input, input_shapes)
        named = input_types(infos, scope.initializers, shapes)
        types = settle(named)
        sizes = equal.sizes_of_names(named, types, self.known)
        scope.declared = declared(proto, sizes, [n for n in sizes if n in self.known])
        inputs = [placeholder(name, type) for name, type in types.items()]
        owners = equal.owners_of(inputs)
        self.size = partial(equal.size_node, owners=owners)
        self.found.inputs = frozenset(owners)
        self.bounds.open_size = self.size
        self.bounds.open = frozenset(s for d in owners for s in Size.of(d).symbols)
        scope.values.update(equal.applied(inputs, self.known, self.require))
        for i in [i for i in inputs if i.name in pins]:
            scope.values[i.name] = value = constant(pins[i.name], f"{i.name} pinned")
            what = f"input {i.name!r} is not {value.array.tolist()}, as the output's shape says"
            self.require(make("Equal", i, value), what)
        for name, parts in held.items():
            elements = None if parts is None else tuple(scope.values[p] for p in parts)
            scope.values[name] = Absent() if elements is None else Items(elements)  # type: ignore[arg-type]
        names = tuple(checked_name(o.name, "output") for o in proto.output)
        if len(set(names)) != len(names):
            raise Error(f"two outputs have the name {first_double(names)!r}")
        try:
            outputs = self.body(proto.node, names, scope, "the graph's output")
            demand_supported(self.unsupported)
        except Error as e:
            raise with_open_sizes(e, inputs) from e
        pairs = [
            pair
            for o, v in zip(names, outputs, strict=True)
            if not isinstance(v, Missing)
            for pair in outputs_of(o, v)
        ]
        lists = [*((n, scope.values[n]) for n in held), *zip(names, outputs, strict=True)]
        notes = {
            "producer": f"{self.model.producer_name} {self.model.producer_version}".strip(),
            "opset": ", ".join(f"{d or 'ai.onnx'} {v}" for d, v in sorted(self.opsets.items())),
        }
        if self.bounds.counts:
            notes[SELECTED] = "yes"
        pairs += self.bounds.extents(pairs)
        pairs += [(CHECK + what, node) for what, node in self.checks.made.items()]
        names, nodes = (tuple(side) for side in zip(*pairs, strict=True))
        notes |= {f"sequence {n}": str(len(v.nodes)) for n, v in lists if isinstance(v, Items)}
        return Graph(tuple(inputs), nodes, names, proto.name or "main", notes)

    def body(
        self, nodes: Iterable[NodeProto], outputs: Sequence[str], scope: Scope, where: str
    ) -> list[Value]:
        """Nodes in any order -> the values of `outputs`; nodes they do not need are not read."""
        if scope.depth > MAX_DEPTH:
            raise Error(f"functions or branches nest deeper than {MAX_DEPTH}", where=where)
        order = list(needed(tuple(nodes), outputs, {*scope.values, *scope.initializers}))
        scope.read = {*outputs, *(i for node in order for i in reads(node))}
        single = {n for n, v in scope.values.items() if isinstance(v, Node) and v.shape == ()}
        spread(order, scope.declared, single)
        for proto in order:
            self.count += 1
            if self.count > self.most:
                raise Error(
                    f"loops and functions make more than {self.most} nodes",
                    where=scope.prefix or where,
                )
            self.convert(proto, scope)
        return [self.value(o, scope, where) for o in outputs]

    def value(self, name: str, scope: Scope, where: str) -> Value:
        """The value of a name; weights are decoded when first read."""
        around: Scope | None = scope
        while around is not None:
            if name in around.values:
                value = around.values[name]
                if isinstance(value, Missing) and value.why:
                    self.report(value.why, "", where)
                    value.why = ""
                return value
            if name in around.initializers:
                around.values[name] = self.weight(name, around.initializers[name])
                return around.values[name]
            around = around.outer
        raise Error(f"{name!r} is read, but nothing makes it", where=where)

    def weight(self, name: str, tensor: TensorProto | SparseTensorProto) -> Value:
        """An initializer -> a constant."""
        try:
            read = dense if isinstance(tensor, SparseTensorProto) else decode
            return constant(read(tensor, self.external, f"initializer {name!r}"), name)
        except Unsupported as e:
            self.report(e.what, "", e.where)
            return Missing()

    def convert(self, proto: NodeProto, scope: Scope) -> None:
        """Convert one node of the file and bind its outputs in the scope."""
        first = next((o for o in proto.output if o), "")
        name = self.unique(scope.prefix + (proto.name or f"{proto.op_type}_{first}"))
        self.found.where = where = f"{name} ({proto.op_type})"
        try:
            inputs = [self.value(i, scope, where) if i else None for i in proto.input]
            present = [i for i in inputs if not isinstance(i, Missing)]
            if len(present) == len(inputs):  # else a missing input was reported
                self.bind(proto, name, self.apply(proto, present, name, scope), scope)
                return
            self.check_known(proto, scope, where)
        except Unsupported as e:
            domain = domain_of(proto.domain)
            self.report(f"{proto.op_type} ({domain or 'ai.onnx'}): {e.what}", e.hint, name)
        for output in proto.output:
            scope.values[output] = Missing()

    def bind(
        self, proto: NodeProto, name: str, result: Node | Sequence[Value], scope: Scope
    ) -> None:
        """Bind the outputs of a node to their names."""
        values: Sequence[Value]
        if isinstance(result, Node) and len(result.types) > 1:
            values = [
                make("item", result, index=i, name=self.unique(output or f"{name}.{i}"))
                for i, output in enumerate(proto.output[: len(result.types)])
            ]
        else:
            values = [result] if isinstance(result, Node) else result
        for i, output in enumerate(proto.output):
            value = values[i] if i < len(values) else None
            absent = Missing(f"output {i} of {proto.op_type} is not supported")
            scope.values[output] = absent if value is None else value

    def apply(
        self, proto: NodeProto, inputs: list[Held], name: str, scope: Scope
    ) -> Node | Sequence[Value]:
        """An operator on its inputs -> a node, or the values of its outputs."""
        where = f"{name} ({proto.op_type})"
        domain = domain_of(proto.domain)
        key = (domain, proto.op_type, proto.overload)
        function = self.functions.get(key)
        attributes = [
            a for a in (bound(p, scope.attributes, where) for p in proto.attribute) if a is not None
        ]
        if function is not None:
            expanded_size(key, self.functions, self.sizes)
            shapes = tuple(scope.declared.get(o) for o in proto.output)
            return self.call_function(function, inputs, attributes, name, scope, shapes)
        self.check_known(proto, scope, where)
        if contrib.known(domain, proto.op_type, scope.opsets):
            given = {a.name: value_of(a, self.external, where) for a in attributes}
            tensors = tuple(i if isinstance(i, Node) else None for i in inputs)
            call = Call(proto.op_type, tensors, given, len(proto.output), 0, name)
            with Malformed(where):
                return contrib.translate(call)
        return self.operator(proto, inputs, attributes, name, scope)

    def operator(
        self,
        proto: NodeProto,
        inputs: Sequence[Held],
        attributes: Sequence[AttributeProto],
        name: str,
        scope: Scope,
    ) -> Node | Sequence[Value]:
        """An operator of ONNX's domain on its inputs -> a node, or the values of its outputs."""
        where = f"{name} ({proto.op_type})"
        domain = domain_of(proto.domain)
        opset = scope.opsets[domain]
        spec = schema(proto.op_type, opset, domain)
        if spec is None:
            raise Unsupported(f"not in opset {opset}", where=where)
        attrs = checked_attributes(spec, attributes, self.external, where)
        attrs.pop("consumed_inputs", None)  # up to opset 5: which memory might be used again
        if proto.op_type == "Constant":
            return constant_of(attrs, proto.output[0] if proto.output else name, where)
        read = max((i for i, o in enumerate(proto.output, 1) if o in scope.read), default=0)
        shapes = tuple(stated(proto.op_type, scope.declared.get(o)) for o in proto.output)
        tensors = tuple(i if isinstance(i, Node) else None for i in inputs)
        call = Call(proto.op_type, tensors, attrs, len(proto.output), read, name)
        if proto.op_type in control.OPERATORS:
            graphs = {a.name: a.g for a in attributes if a.type == AttributeProto.GRAPH}
            with Malformed(where):
                self.bounds.demand_none(call)
                branch: control.Branch = partial(self.branch, scope=scope)
                if proto.op_type != "If":
                    branch = partial(self.of_known_sizes, call, branch)
                elif known_value(call.need(0)) is None:
                    branch = partial(self.side, call.need(0), graphs["then_branch"], branch)
                s = Settling(call, shapes, self.require, self.bounds.put)
                attempt = partial(attempted, self.rolls, self.checks, self.unsupported)
                return controlled(s, inputs, graphs, branch, self.bounds, attempt, opset < 9)  # type: ignore[return-value]
        if sequences.takes(proto.op_type, inputs):
            with Malformed(where):
                s = Settling(call, (), self.require, self.bounds.put)
                made = sequences.applied(call, inputs, s)
                if not sequences.are_among(made, inputs):
                    self.bounds.demand_none_in(call, inputs)
                return (made,)
        if any(isinstance(i, (Items, Pieces, Absent)) for i in inputs):
            raise Unsupported("a sequence where a tensor is needed", where=where)
        check_inputs(spec, tensors, where)
        with Malformed(where):
            if self.bounds.reads(call) and body_of(call, opset, attributes, domain) is None:
                with noted(None):  # sizes of memory say nothing of those of values
                    return finish(applied(call, opset, self.bounds, shapes))
            most = partial(largest, ranges=self.ranges)
            result = settled(call, shapes, self.require, self.bounds.put, self.size, most)
            body = None
            if isinstance(result, Call):
                body = body_of(result, opset, attributes, domain)
                result = newest(result, opset) if body is None else result
            if body is None:
                node = finish(result)
                if not isinstance(node, Node):
                    return node
                note_computed(node, self.bounds, self.ranges)
                return by_ranges(node, self.ranges)
            assert isinstance(result, Call)
        outer = tuple(scope.declared.get(o) for o in proto.output)
        return self.call_function(body, result.inputs, attributes, name, scope, outer)

    def side(
        self,
        condition: Node,
        yes: GraphProto,
        branch: control.Branch,
        graph: GraphProto,
        name: str,
        given: Sequence[Held],
    ) -> Sequence[object]:
        """The outputs of a branch, whose checks matter only to runs that take it."""
        with self.checks.only_if(condition, graph is yes), noted(None):
            return branch(graph, name, given)

    def of_known_sizes(
        self,
        call: Call,
        branch: control.Branch,
        graph: GraphProto,
        name: str,
        given: Sequence[Held],
    ) -> Sequence[object]:
        """The outputs of a branch or body. Raises Unsupported if data decide the size of one."""
        # A body that does not run needs nothing; that of a Scan runs once for each position.
        with nullcontext() if call.op == "Scan" else noted(None):
            made = branch(graph, name, given)
        self.bounds.demand_none_in(call, made)
        return made

    def check_known(self, proto: NodeProto, scope: Scope, where: str) -> None:
        """Raise Unsupported if an operator has no definition here."""
        domain = domain_of(proto.domain)
        if (domain, proto.op_type, proto.overload) in self.functions:
            return
        if domain not in scope.opsets:
            raise Error(
                f"the model does not import the domain {domain or 'ai.onnx'!r}", where=where
            )
        op, opset = proto.op_type, scope.opsets[domain]
        known = op in OPERATORS or adapted(op) or settling(op)
        known = known or op == "Constant" or op in control.OPERATORS | sequences.OPERATORS
        if contrib.known(domain, op, scope.opsets):
            return
        known = known and domain in ("", optimizers.DOMAIN)
        if not (known or (domain in _PREVIEWS and has_function(op, opset, domain))):
            raise Unsupported("unknown operator", where=where)

    def branch(
        self, graph: GraphProto, name: str, given: Sequence[Value], scope: Scope
    ) -> Sequence[Value]:
        """The outputs of one branch, or of a body on given inputs."""
        if len(graph.input) != len(given):
            raise Error(f"{len(graph.input)} inputs where {len(given)} are given", where=name)
        inner = Scope(
            scope.opsets,
            values={i.name: node for i, node in zip(graph.input, given, strict=True)},
            initializers=initializers(graph),
            attributes=scope.attributes,
            declared=declared(graph),
            outer=scope,
            prefix=f"{name}/",
            depth=scope.depth + 1,
        )
        return self.body(graph.node, [o.name for o in graph.output], inner, name)

    def call_function(
        self,
        function: FunctionProto,
        inputs: Sequence[Held],
        attributes: Sequence[AttributeProto],
        name: str,
        scope: Scope,
        shapes: Sequence[Stated | None] = (),
    ) -> Sequence[Value]:
        """A call of a function, its outputs' shapes if known -> the outputs of its body."""
        where = f"{name} ({function.name})"
        if len(inputs) > len(function.input):
            raise Error(f"{len(inputs)} inputs where {len(function.input)} are taken", where=where)
        given = {a.name: a for a in function.attribute_proto} | {a.name: a for a in attributes}
        absent = (None,) * (len(function.input) - len(inputs))
        inner = Scope(
            opset_versions(function.opset_import) if function.opset_import else self.opsets,
            values=dict(zip(function.input, (*inputs, *absent), strict=True)),
            attributes=given,
            prefix=f"{name}/",
            depth=scope.depth + 1,
            declared={
                o: shape
                for o, shape in zip(function.output, shapes, strict=False)
                if shape is not None
            },
        )
        return self.body(function.node, function.output, inner, where)

    def unique(self, name: str) -> str:
        """A unique node name of printable characters."""
        if len(name) > MAX_NAME:
            raise Error(f"a name of {len(name)} characters", where=name[:60])
        plain = re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]", "_", name)
        unique, count = plain, self.names.get(plain, 0)
        while unique in self.names:
            count += 1
            unique = f"{plain}_{count}"
        self.names[plain] = max(count, 1)
        self.names.setdefault(unique, 1)
        return unique

    def report(self, what: str, hint: str, name: str) -> None:
        """Record an unsupported feature and the node that uses it."""
        self.unsupported.setdefault((what, hint), []).append(name)
