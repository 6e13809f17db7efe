"""The structure of a file: names, order of nodes, branches, expanded sizes of functions."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from onnx import (
    AttributeProto,
    FunctionProto,
    GraphProto,
    ModelProto,
    NodeProto,
    SparseTensorProto,
    TensorProto,
)

from qcompiler.errors import Error

MAX_NODES = 1_000_000
MAX_MADE, MAX_GROWTH = 20_000, 64
"""Loops and functions may expand a file of n nodes to 20,000 + 64 n."""
MAX_DEPTH = 64

FunctionKey = tuple[str, str, str]
"""A function's domain, name and overload."""


def domain_of(domain: str) -> str:
    """A domain; both spellings of ONNX's own are ""."""
    return "" if domain == "ai.onnx" else domain


def check_text(model: ModelProto) -> None:
    """Raise Error if a name is not UTF-8: protobuf then returns bytes."""
    for text in _texts(model):
        if not isinstance(text, str):
            raise Error("a name in the model is not text (UTF-8)", hint="the file is damaged")


def _texts(model: ModelProto) -> Iterator[object]:
    yield from (model.producer_name, model.producer_version)
    yield from (i.domain for i in model.opset_import)
    yield from _graph_texts(model.graph)
    for function in model.functions:
        yield from (function.name, function.domain, function.overload)
        yield from (*function.input, *function.output, *function.attribute)
        yield from (a.name for a in function.attribute_proto)
        yield from (i.domain for i in function.opset_import)
        yield from _node_texts(function.node)


def _graph_texts(graph: GraphProto) -> Iterator[object]:
    yield graph.name
    for info in graph.input:
        yield info.name
        yield from (d.dim_param for d in info.type.tensor_type.shape.dim)
    yield from (o.name for o in graph.output)
    yield from initializer_names(graph)
    for tensor in (*graph.initializer, *_parts(graph.sparse_initializer)):
        yield from _external_texts(tensor)
    yield from _node_texts(graph.node)


def _node_texts(nodes: Iterable[NodeProto]) -> Iterator[object]:
    for node in nodes:
        yield from (node.name, node.op_type, node.domain, node.overload, *node.input, *node.output)
        for attribute in node.attribute:
            yield from (attribute.name, attribute.ref_attr_name)
            for tensor in (attribute.t, *_parts([attribute.sparse_tensor])):
                yield from _external_texts(tensor)
        for graph in branches(node):
            yield from _graph_texts(graph)


def _external_texts(tensor: TensorProto) -> Iterator[object]:
    for entry in tensor.external_data:
        yield from (entry.key, entry.value)


def _parts(tensors: Iterable[SparseTensorProto]) -> Iterator[TensorProto]:
    for sparse in tensors:
        yield from (sparse.values, sparse.indices)


def initializer_names(graph: GraphProto) -> Iterator[str]:
    """The names of a graph's initializers; a sparse one has the name of its values."""
    yield from (t.name for t in graph.initializer)
    yield from (t.values.name for t in graph.sparse_initializer)


def needed(
    nodes: Sequence[NodeProto], outputs: Sequence[str], taken: Collection[str]
) -> Iterator[NodeProto]:
    """Nodes in any order -> those the outputs need, in topological order."""
    maker: dict[str, int] = {}
    for index, node in enumerate(nodes):
        for output in node.output:
            if output and (output in maker or output in taken):
                raise Error(
                    f"{output!r} is defined twice", where=f"{node.name or output} ({node.op_type})"
                )
            if output:
                maker[output] = index
    opened: set[int] = set()
    done: set[int] = set()
    stack = [(maker[o], False) for o in reversed(outputs) if o in maker]
    while stack:
        index, ready = stack.pop()
        if ready:
            done.add(index)
            yield nodes[index]
        elif index in done:
            continue
        elif index in opened:
            node = nodes[index]
            raise Error(
                "a cycle: it depends on its own output",
                where=f"{node.name or node.output[0]} ({node.op_type})",
            )
        else:
            opened.add(index)
            stack.append((index, True))
            sources = (maker[i] for i in reads(nodes[index]) if i in maker)
            stack.extend((i, False) for i in sources if i not in done)


def all_nodes(nodes: Iterable[NodeProto]) -> Iterator[NodeProto]:
    """The nodes, including those in their branches."""
    for node in nodes:
        yield node
        for graph in branches(node):
            yield from all_nodes(graph.node)


def branches(node: NodeProto) -> Iterator[GraphProto]:
    """The graphs among a node's attributes."""
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            yield attribute.g
        elif attribute.type == AttributeProto.GRAPHS:
            yield from attribute.graphs


def reads(node: NodeProto) -> Iterator[str]:
    """The names a node reads: its inputs, and its branches' reads of enclosing scopes."""
    yield from node.input
    for graph in branches(node):
        made = {o for inner in graph.node for o in inner.output}
        made.update((*initializer_names(graph), *(i.name for i in graph.input)))
        inside = [i for inner in graph.node for i in reads(inner)]
        inside.extend(o.name for o in graph.output)
        yield from (i for i in inside if i not in made)


def expanded_size(
    key: FunctionKey,
    functions: Mapping[FunctionKey, FunctionProto],
    sizes: dict[FunctionKey, int],
    depth: int = 0,
) -> int:
    """A function -> the number of nodes a call expands to. Raises Error if there are too many.

    `sizes` memoizes results; -1 marks a function being visited.
    """
    size = sizes.get(key, 0)
    if size > 0:
        return size
    if size < 0:
        raise Error("a function that calls itself", where=key[1])
    if depth > MAX_DEPTH:
        raise Error(f"functions call each other deeper than {MAX_DEPTH}", where=key[1])
    sizes[key] = -1
    size = 1
    for node in all_nodes(functions[key].node):
        inner = (domain_of(node.domain), node.op_type, node.overload)
        size += expanded_size(inner, functions, sizes, depth + 1) if inner in functions else 1
    if size > MAX_NODES:
        raise Error(f"calls become more than {MAX_NODES} nodes", where=key[1])
    sizes[key] = size
    return size
