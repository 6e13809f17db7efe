"""Operators by what they do with numbers: move them, change them a little, or sum up products."""

from __future__ import annotations

# fmt: off
MOVES = frozenset({
    "Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "GlobalMaxPool", "Identity", "MaxPool",
    "Pad", "Reshape", "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze",
    "item",
})
"""What comes out is what went in: the work is done on the few bits themselves."""

SMOOTH = frozenset({
    "Add", "AveragePool", "Celu", "Clip", "Elu", "Gelu", "GlobalAveragePool", "HardSigmoid",
    "HardSwish", "LeakyRelu", "Max", "Min", "Mish", "Mul", "PRelu", "ReduceMean", "Relu", "Resize",
    "Selu", "Sigmoid", "Softplus", "Softsign", "Sub", "Sum", "Swish", "Tanh", "ThresholdedRelu",
})
"""Few bits may come in and go out; in between is float32 in registers, or a table."""
# fmt: on

PRODUCTS = frozenset({"Conv", "ConvTranspose", "MatMul"})
"""They multiply an activation, by weights that may take few bits or be pruned."""

MEASURED = PRODUCTS | {"Attention"}
"""What is timed and judged by itself: where a network's time goes, and its error comes from."""

VIEWS = frozenset({"Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity"})
"""They keep every byte where it is."""
