"""A conv or matmul region -> the vector product and the problem of its direct kernels, and what the
best of them takes, which other models measure themselves by.
"""

from __future__ import annotations

from dataclasses import replace
from math import inf

from qcompiler.errors import Skip
from qcompiler.hardware.isa import Cpu
from qcompiler.ir import Node
from qcompiler.kernels.cpu.code import tir
from qcompiler.kernels.cpu.code.draft import refuse, too_large
from qcompiler.kernels.cpu.contraction.blocking import priced
from qcompiler.kernels.cpu.contraction.operands import (
    Product,
    block_product_of,
    product_of,
    short_product_of,
)
from qcompiler.kernels.cpu.contraction.problem import Problem, problem_of
from qcompiler.kernels.cpu.contraction.zipped import worth_zipping
from qcompiler.kernels.region import Region


def direct(region: Region, device: Cpu) -> tuple[Problem, Product] | Skip:
    """What tiled.py multiplies, and by which product."""
    root = region.root
    assert root is not None
    if reason := refuse(region):
        return reason
    constant = root.operands[1].is_constant
    product = _product(region, root, device)
    if isinstance(product, Skip):
        return product
    problem = problem_of(root, product.mac.width, device.core)
    if isinstance(problem, Skip):
        return problem
    if 0 in (problem.macs, *root.type.dims):
        return Skip("nothing to multiply")
    if any(root.operands[1] in n.operands for n in region.nodes if n is not root):
        return Skip("the right operand is read again, as it is")
    if reason := too_large(region):
        return reason
    if root.op == "conv" and not constant and (problem.tap_count > 1 or root.int("group") > 1):
        return Skip("a window's weights that are known at run time only")
    if product.leftovers:
        product = replace(product, run=region.known(root.operands[1]).run)
    problem = replace(problem, result_bytes=tir.bits(tir.stored(region.output.dtype)) // 8)
    if product.run > 1 and not priced(problem, product, device):
        product = replace(product, run=1)
    if worth_zipping(problem, product):  # or rows as they lie, which may bring as many steps
        ways = (replace(product, zipped=True), product)
        product = min(ways, key=lambda p: least(problem, p, device))
    return problem, product


def _product(region: Region, root: Node, device: Cpu) -> Product | Skip:
    """The product to use: of blocks if an image has as many rows as a block, else with short sums,
    or of vectors.
    """
    left, right = (i.dtype for i in root.operands)
    if found := block_product_of(device.isa, left, right, root.dtype):
        problem = problem_of(root, found.mac.width, device.core)
        if not isinstance(problem, Skip) and problem.rows * problem.columns >= found.mac.rows:
            return found
    constant = root.operands[1].is_constant
    if constant and (short := short_product_of(region, device.isa)):
        return short
    product = product_of(device.isa, left, right, root.dtype, packed=constant)
    return product or Skip(f"no product of {left} and {right}")


def least(problem: Problem, product: Product, device: Cpu) -> float:
    """Cycles of the best tiling; inf if none fits the registers."""
    return min((cycles for cycles, _ in priced(problem, product, device)), default=inf)
