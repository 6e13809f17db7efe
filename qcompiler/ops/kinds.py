"""Operators classed by arithmetic: data movement, smooth functions, sums of products."""

from __future__ import annotations

# fmt: off
MOVES = frozenset({
    "Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "GlobalMaxPool", "Identity", "MaxPool",
    "Pad", "Reshape", "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze",
    "item",
})
"""Outputs are inputs unchanged, so they run on low-precision values directly."""

SMOOTH = frozenset({
    "Add", "AveragePool", "Celu", "Clip", "Elu", "Gelu", "GlobalAveragePool", "HardSigmoid",
    "HardSwish", "LeakyRelu", "Max", "Min", "Mish", "Mul", "PRelu", "ReduceMean", "Relu", "Resize",
    "Selu", "Sigmoid", "Softplus", "Softsign", "Sub", "Sum", "Swish", "Tanh", "ThresholdedRelu",
})
"""Inputs and outputs may be low precision; the arithmetic is float32 in registers, or a table."""
# fmt: on

PRODUCTS = frozenset({"Conv", "ConvTranspose", "MatMul"})
"""Products of an activation and weights, which may be quantized or pruned."""

MEASURED = PRODUCTS | {"Attention"}
"""Timed and evaluated one by one: most of a network's time and error is theirs."""

VIEWS = frozenset({"BitCast", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity"})
"""Operators that leave the bytes in memory as they are."""
