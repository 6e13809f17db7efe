"""Attention reads interleaved heads without a Transpose.

Attention(Transpose(q), Transpose(k), Transpose(v))  ->  Transpose(Reshape(Attention(q', k', v')))

Each Transpose is [B,S,H,D] -> [B,H,S,D], and q' is q reshaped to [B,S,H*D], as its product made it.
Operators that follow move before the Reshape, so that they fuse into attention's kernel:

quantize(Reshape(Attention(...)), k, z)  ->  Reshape(quantize(Attention(...), k, z))  likewise Cast
"""

from __future__ import annotations

from qcompiler.ir import Node
from qcompiler.rewrite import CONST, OPTIONAL, Skip, op, rule
from qcompiler.rewrite.matching import perm_of, rebuilt, reshape, transpose

SWAPPED = (0, 2, 1, 3)
TURNED = op("Transpose", shared=True)
VIEWED = op("Reshape", op("Attention|attention"), CONST)


@rule(op("Attention|attention", TURNED, TURNED, TURNED, OPTIONAL, OPTIONAL))
def layout_heads(attention: Node, q: Node, k: Node, v: Node) -> Node | Skip | None:
    """Attention(Transpose(q), ...) -> Transpose(Reshape(Attention(q', ...)))."""
    if len(attention.types) > 1 or attention.type.rank != 4:
        return None
    if any(perm_of(n) != SWAPPED for n in (q, k, v)):
        return Skip("q, k and v are not transposed by heads and positions")
    batch, heads, queries, size = attention.type.dims
    flat = [_side_by_side(n.operands[0]) for n in (q, k, v)]
    made = rebuilt(
        attention,
        (*flat, *attention.inputs[3:]),
        q_num_heads=heads,
        kv_num_heads=k.type.dims[1],
    )
    return transpose(reshape(made, (batch, queries, heads, size)), SWAPPED)


def _side_by_side(x: Node) -> Node:
    """[B,S,H,D] -> [B,S,H*D]."""
    batch, positions, heads, size = x.type.dims
    return reshape(x, (batch, positions, heads * size))


@rule(op("quantize|Cast", VIEWED, OPTIONAL, OPTIONAL))
def layout_attention_epilogue(after: Node, view: Node, attention: Node) -> Node | Skip:
    """quantize(Reshape(Attention(...)), k, z) -> Reshape(quantize(Attention(...), k, z))."""
    if any(i.type.size > 1 for i in after.operands[1:]):
        return Skip("a factor per channel")
    return reshape(rebuilt(after, (attention, *after.inputs[1:])), view.type.dims)
