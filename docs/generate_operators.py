"""The compiler's registries -> docs/supported-operators.md, so that the page cannot lag behind.

python docs/generate_operators.py            # writes the page
python docs/generate_operators.py --check    # exit status 1 if it is out of date
"""

from __future__ import annotations

import sys
from pathlib import Path

import onnx
from qcompiler.passes.quantize_integers import WEIGHT_AXIS

from qcompiler import onnx_contrib, plugins
from qcompiler.kernels.registry import GENERATORS
from qcompiler.ops import OPERATORS
from qcompiler.ops.kinds import MOVES, SMOOTH, VIEWS
from qcompiler.rewrite import PASSES, Rule, stage_of

PAGE = Path(__file__).parent / "supported-operators.md"

HEAD = """\
# Supported operators

Made by `docs/generate_operators.py` from the registries of the compiler; a test keeps it current.
- **Meaning**: every operator here has a numpy meaning, which folds constants and is the oracle of
  the tests. An operator with a *formula* is elementwise: numpy, the kernels and the builder of
  int8 tables read the same formula, and it melts into the kernel before or after it.
- **Runs as**: the kernel generators that are registered for it, best first; or the rewrite that
  turns it into something else; or *view*, where only the shape changes and no code runs. *Folded
  only* means that there is no kernel: it must disappear while compiling (constant operands, or
  known shapes), else compiling ends in `no kernel yet for ...`. A rewrite or a generator may
  still refuse a case: `--explain` says which and why.
- **In static int8**: what `--precision int8` makes of it where its neighbours are bytes.
  *Product*: integer multiply-accumulate. *Moves bytes*: works on the bytes as they are. *Between
  bytes*: reads and writes bytes, float32 in registers (or a table of 256 entries). *Float*: stays
  float32. An elementwise operator of one value that a quantized *model* puts between bytes
  becomes a table whatever this column says.

Operators whose definition ONNX gives as a function of other operators are taken apart by the
reader when they are not listed here. Opsets 7 to the newest are read; older spellings are brought
up to date.
"""


def runs_as(op: str) -> str:
    """An operator's name -> how it gets to run."""
    if op in VIEWS:
        return "view"
    if OPERATORS[op].formula is not None:
        return "elementwise"
    if op in GENERATORS and op not in _EITHER:
        return ", ".join(f"`{g.name}`" for g in GENERATORS[op])
    if op in _BY_ITEM:
        return _BY_ITEM[op]
    rules = [n for n, p in PASSES.items() if isinstance(p, Rule) and op in p.pattern.ops]
    lowering = [n for n in rules if stage_of(n) == "layout"] or [
        n for n in rules if stage_of(n) in ("fold", "quantize") and n not in _DROPS
    ]
    if lowering:
        either = [f", or `{g.name}`" for g in GENERATORS.get(op, [])]
        return "rewritten: " + ", ".join(f"`{n}`" for n in sorted(lowering)) + "".join(either)
    return "folded only"


_BY_ITEM = {
    "Split": "`copy`",
    "TopK": "`top_k`",
    "DynamicQuantizeLinear": "`dynamic_quantize`",
    **dict.fromkeys(("RNN", "GRU", "LSTM"), "rewritten: `fold_recurrent`"),
}
"""Operators of several outputs: the kernel or the rule belongs to `item`, which picks one."""
_EITHER = frozenset({"ConvTranspose"})
"""Operators that a kernel computes only where the rule does not apply."""
_DROPS = frozenset({"fold_no_change", "fold_one_operand", "fold_split_in_one", "fold_neutral"})
"""Rules that only remove an operator where it does nothing."""


def in_int8(op: str) -> str:
    """An operator's name -> its form in statically quantized networks."""
    if op in WEIGHT_AXIS or op in ("Gemm", "QLinearConv", "QLinearMatMul"):
        return "product"
    if op in ("ConvInteger", "MatMulInteger", "QuantizeLinear", "DequantizeLinear"):
        return "integer itself"
    if op in MOVES:
        return "moves bytes"
    return "between bytes" if op in SMOOTH else "float"


def page() -> str:
    """The registries -> the whole page."""
    plugins.load_all()
    schemas = onnx.defs.get_all_schemas_with_history()
    standard = {s.name for s in schemas if s.domain == ""}
    lines = [HEAD, f"## ONNX operators ({len(standard & OPERATORS.keys())})", ""]
    lines += ["| operator | meaning | runs as | in static int8 |", "|---|---|---|---|"]
    for op in sorted(standard & OPERATORS.keys()):
        meaning = "formula" if OPERATORS[op].formula is not None else "numpy"
        lines.append(f"| {op} | {meaning} | {runs_as(op)} | {in_int8(op)} |")
    lines += [
        "",
        "`If` is read too: a constant condition takes its branch, any other computes both",
        "",
    ]
    lines[-2] += (
        " and picks. `Constant` becomes a constant. `Loop` and `Scan` are unrolled where constants"
    )
    lines[-1] = "and shapes tell how often they turn. Sequences are not read."
    lines.append("")
    lines += ["## The compiler's own operators", ""]
    lines += ["Lower-case, channels last; the quantize and layout stages make them.", ""]
    lines += ["| operator | runs as |", "|---|---|"]
    own = sorted(OPERATORS.keys() - standard - {"constant", "item"})
    lines += [f"| {op} | {runs_as(op)} |" for op in own]
    lines += ["", "## Operators of onnxruntime (`com.microsoft`)", "", _wrapped(_contrib()), ""]
    return "\n".join(lines)


def _contrib() -> list[str]:
    opsets = {"": onnx.defs.onnx_opset_version(), "com.microsoft": 1}
    names = {*OPERATORS, *_CONTRIB}
    return sorted(n for n in names if onnx_contrib.known("com.microsoft", n, opsets))


# onnxruntime's own names that ONNX lacks; those that the reader does not know are not printed.
# fmt: off
_CONTRIB = (
    "BiasGelu", "FastGelu", "FusedConv", "FusedGemm", "FusedMatMul", "Gelu", "MatMulNBits",
    "QGemm", "QLinearAdd", "QLinearAveragePool", "QLinearConcat", "QLinearGlobalAveragePool",
    "QLinearLeakyRelu", "QLinearMul", "QLinearSigmoid", "QLinearSoftmax", "QuickGelu",
    "SimplifiedLayerNormalization", "SkipLayerNormalization",
    "SkipSimplifiedLayerNormalization",
)
# fmt: on


def _wrapped(names: list[str]) -> str:
    return ", ".join(f"`{n}`" for n in names) + "."


def main() -> int:
    """Write the page, or with --check compare."""
    text = page()
    if "--check" in sys.argv[1:]:
        return int(not PAGE.exists() or PAGE.read_text() != text)
    PAGE.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
