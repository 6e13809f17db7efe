"""Products -> the innermost loop of their code, by llvm-mca: cycles beside the core's limit.

    python -m benchmarks.arm_loops

For each device, precision and layer: the multiply-accumulate instructions of the loop that has
most of them, the cycles an iteration takes, those that its multiply-accumulates alone would take
(the same instructions without waiting for each other), their ratio, and what must not be there:
registers spilled to the stack, and multiply-accumulates of one element. llvm-mca knows the core's
pipelines, not its caches. Needs Debian's `llvm-22`, or whatever `--mca` names.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from qcompiler.driver import Compilation
from qcompiler.emit.machine import machine_code
from qcompiler.hardware.isa import Isa
from qcompiler.options import Options, Watch

CORES = {
    "raspberry_pi_3": "cortex-a53",
    "raspberry_pi_4": "cortex-a72",
    "raspberry_pi_5": "cortex-a76",
    "graviton2": "neoverse-n1",
    "graviton3": "neoverse-v1",
    "rk3568": "cortex-a55",
}
"""Devices -> the name that LLVM has for their cores."""
PRECISIONS = {
    "raspberry_pi_3": ("float32", "int8"),
    "raspberry_pi_4": ("float32", "int8"),
    "raspberry_pi_5": ("float32", "int8"),
    "graviton2": ("float32", "int8"),
    "graviton3": ("float32", "int8", "bfloat16"),
    "rk3568": ("float32", "int8"),
}
LAYERS = {"MatMul 256x512x512": (), "Conv 3x3, 64 to 64, 28x28": (3, 3)}
MULTIPLIES = re.compile(
    r"^(fmla|[su]dot|usdot|[su]mmla|usmmla|bfmmla|bfdot|[su]mlal2?|[su]mull2?)$"
)
SCALAR = re.compile(r"\b(fmadd|madd|smaddl)\b")


@dataclass(frozen=True)
class Loop:
    """The lines of a loop's body."""

    lines: tuple[str, ...]

    @property
    def multiplies(self) -> list[str]:
        """Its multiply-accumulates."""
        return [line for line in self.lines if MULTIPLIES.match(line.split()[0])]

    @property
    def spills(self) -> int:
        """Vectors that it moves to or from the stack; kernels have no frame pointer."""
        return sum(bool(re.match(r"(ldr|str|ldp|stp)\s+[qdv]\d+.*\[sp", x)) for x in self.lines)


def network(layer: str) -> onnx.ModelProto:
    """One layer of random weights."""
    rng = np.random.default_rng(0)
    if layer.startswith("MatMul"):
        weights, shape = rng.standard_normal((512, 512)), [256, 512]
        node = helper.make_node("MatMul", ["x", "w"], ["y"])
    else:
        weights, shape = rng.standard_normal((64, 64, 3, 3)), [1, 64, 28, 28]
        node = helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1])
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    w = numpy_helper.from_array(weights.astype(np.float32), "w")
    graph = helper.make_graph([node], "layer", [x], [y], [w])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])


def assembly(device: str, precision: str, layer: str) -> tuple[Isa, str]:
    """All kernels that a layer becomes."""
    data = "synthetic" if precision == "int8" else None
    options = Options(target=device, precision=precision, calibration=data, threads=1)
    plan = Compilation(network(layer), options, Watch()).plan
    functions = {f"step{i}": step.kernel.func for i, step in enumerate(plan.steps)}
    isa = plan.device.isa
    return isa, str(machine_code(functions, isa, "").inspect_source("asm"))


def loops(text: str) -> Iterator[Loop]:
    """Innermost loops: from a label to a branch back to it, with no other label in between that is
    branched back to."""
    lines = [line.split("//")[0].strip() for line in text.splitlines()]
    lines = [line for line in lines if line and (not line.startswith(".") or line.endswith(":"))]
    at = {line[:-1]: i for i, line in enumerate(lines) if line.endswith(":")}
    for end, line in enumerate(lines):
        match = re.match(r"(?:b\.\w+|cbn?z|tbn?z)\b.*?(\.L\w+)$", line)
        begin = at.get(match[1], end) if match else end
        body = lines[begin:end]
        if begin < end and not any(re.match(r"(b\.|cbn?z|tbn?z)", x) for x in body):
            yield Loop((*(x for x in body if not x.endswith(":")), line))


def hottest(text: str) -> Loop | None:
    """The loop with most multiply-accumulates among its instructions: others are of the rows and
    columns that are left, or transform tiles.
    """
    found = [loop for loop in loops(text) if len(loop.multiplies) >= 16]
    return max(found, key=lambda loop: len(loop.multiplies) / len(loop.lines), default=None)


def cycles(mca: str, core: str, isa: Isa, lines: Sequence[str], *, alone: bool = False) -> float:
    """Of an iteration; `alone`: of the pipelines only, whatever waits for whatever."""
    rounds = 100
    features = ",".join(word for word in isa.llvm if word[0] == "+")
    command = [mca, "-mtriple=aarch64", f"-mcpu={core}", f"-iterations={rounds}"]
    given = "\n".join(re.sub(r"\.L\w+", ".Lloop", x) for x in [".Lloop:", *lines]) + "\n"
    if features:
        command.append(f"-mattr={features}")
    done = subprocess.run(command, input=given, capture_output=True, text=True, check=True)
    pattern = r"Block RThroughput:\s+([\d.]+)" if alone else r"Total Cycles:\s+(\d+)"
    found = re.search(pattern, done.stdout)
    assert found, done.stdout[:300]
    return float(found[1]) if alone else float(found[1]) / rounds


def main() -> None:
    """Print the table; status 1 where a loop spills."""
    p = argparse.ArgumentParser(prog="python -m benchmarks.arm_loops", description=__doc__)
    p.add_argument("--mca", default="llvm-mca-22", help="llvm-mca, a path or a name")
    p.add_argument("--devices", nargs="*", default=list(CORES), choices=list(CORES))
    arguments = p.parse_args()
    heads = ["device", "core", "precision", "layer", "multiply-accumulates", "cycles", "limit"]
    print("| " + " | ".join([*heads, "of the limit", "spills", "scalars"]) + " |")
    print("|---" * (len(heads) + 3) + "|")
    spilled = False
    for device in arguments.devices:
        core = CORES[device]
        for precision in PRECISIONS[device]:
            for layer in LAYERS:
                isa, text = assembly(device, precision, layer)
                loop = hottest(text)
                if loop is None:
                    continue
                taken = cycles(arguments.mca, core, isa, loop.lines)
                limit = cycles(arguments.mca, core, isa, loop.multiplies, alone=True)
                scalars = sum(bool(SCALAR.search(x)) for x in loop.lines)
                spilled |= loop.spills > 0
                row = [device, core, precision, layer, str(len(loop.multiplies)), f"{taken:.1f}"]
                row += [f"{limit:.1f}", f"{limit / taken:.0%}", str(loop.spills), str(scalars)]
                print("| " + " | ".join(row) + " |", flush=True)
    sys.exit(int(spilled))


if __name__ == "__main__":
    main()
