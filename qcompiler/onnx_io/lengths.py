"""How many numbers an operand has that says a shape, axes or pads: as many as the ranks of the
other operands, and of the outputs that the model declares, leave possible.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from qcompiler.ir import Dim, Node
from qcompiler.onnx_io.call import Call
from qcompiler.ops.equal import note
from qcompiler.ops.reduce import REDUCTIONS
from qcompiler.ops.shapes import total

Stated = tuple[Dim, ...] | None
_Length = Callable[[Call, Stated], Dim | None]


def _rank(call: Call, shape: Stated) -> int:
    return call.need(0).type.rank


def _of_output(call: Call, shape: Stated) -> int | None:
    return None if shape is None else len(shape)


def _of_image(call: Call, shape: Stated) -> int | None:
    return None if shape is None else len(shape) - 2


def _added(call: Call, shape: Stated) -> int | None:
    return None if shape is None else len(shape) - _rank(call, shape)


def _removed(call: Call, shape: Stated) -> int | None:
    return None if shape is None else _rank(call, shape) - len(shape)


def _reduced(call: Call, shape: Stated) -> int | None:
    if shape is None or not call.get("keepdims"):
        return _removed(call, shape)
    before = call.need(0).shape
    return None if 1 in before else sum(d == 1 for d in shape)


def _axes(call: Call, shape: Stated) -> int:
    return len(call.numbers("axes") or ()) or _rank(call, shape)


def _region(call: Call, shape: Stated) -> int | None:
    """Of a part to resize, where it begins and ends; before opset 11, a scale."""
    mode = call.get("coordinate_transformation_mode")
    if mode in (None, "tf_crop_and_resize"):
        return _axes(call, shape) * (1 if mode is None else 2)
    return None  # nothing reads it


def _pads(call: Call, shape: Stated) -> Dim:
    axes = call.input(3)
    return total((2, _rank(call, shape) if axes is None else axes.shape[0]))


def _one(call: Call, shape: Stated) -> int:
    return 1


def _outputs(call: Call, shape: Stated) -> int:
    return call.outputs


_LENGTHS: dict[str, dict[int, _Length]] = {
    **{name: {1: _reduced} for name in REDUCTIONS},
    "AffineGrid": {1: _of_output},
    "CenterCropPad": {1: _axes},
    "Col2Im": {1: _of_image, 2: _of_image},
    "ConstantOfShape": {0: _of_output},
    "MaxUnpool": {2: _rank},
    "Pad": {1: _pads},
    "Reshape": {1: _of_output},
    "Resize": {1: _region, 2: _axes, 3: _axes},
    "Split": {1: _outputs},
    "Squeeze": {1: _removed},
    "Tile": {1: _rank},
    "TopK": {1: _one},
    "Unsqueeze": {1: _added},
    "Upsample": {1: _rank},
}
"""An operator -> its operands of which the length is known, and that."""


def note_lengths(call: Call, shapes: Sequence[Stated]) -> None:
    """Note how long the operands of a call must be, where that is open."""
    shape = next((s for s in shapes if s is not None), None)
    for index, length in _LENGTHS.get(call.op, {}).items():
        operand = call.input(index)
        if isinstance(operand, Node) and operand.type.rank == 1 and not operand.type.static:
            wanted = length(call, shape)
            if wanted is not None and (isinstance(wanted, str) or wanted >= 0):
                note(operand.shape[0], wanted)
