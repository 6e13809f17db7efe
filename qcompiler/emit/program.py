"""Plan for a GPU -> its program: every kernel's code once, compiled for an architecture, and the
launches of all steps in order.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from qcompiler.artifact.program import Launch, Program, written
from qcompiler.emit import cuda, nvrtc
from qcompiler.emit.signed import signature_of
from qcompiler.hardware import cpu
from qcompiler.plan.plan import Plan, Step

_FUNCTIONS_A_MODULE = 8


def emit(plan: Plan) -> bytes:
    """Plan -> the bytes of its program. Raises Error without the compiler for CUDA."""
    known: dict[str, cuda.Launched] = {}
    for step in plan.steps:
        if step.kernel.name not in known:
            known[step.kernel.name] = cuda.launched(step.kernel)
    functions = {n: f for made in known.values() for n, f in made.functions.items()}
    names = list(functions)
    of = {n: i // _FUNCTIONS_A_MODULE for i, n in enumerate(names)}
    parts = [
        {n: functions[n] for n in names[i : i + _FUNCTIONS_A_MODULE]}
        for i in range(0, len(names), _FUNCTIONS_A_MODULE)
    ]
    isa = plan.device.isa
    sources = [cuda.source(part, isa) for part in parts]
    with ThreadPoolExecutor(cpu.cores()) as pool:
        codes = list(pool.map(lambda text: nvrtc.compile(text, isa.name), sources))
    launches = tuple(
        _launch(i, step, launch, of[launch.function], plan.parts)
        for i, step in enumerate(plan.steps)
        for launch in known[step.kernel.name].launches
    )
    made = Program({isa.name: codes}, launches, nvrtc.driver(), signature_of(plan))
    return written(made)


def _launch(index: int, step: Step, launch: cuda.Launch, module: int, parts: int) -> Launch:
    assert parts == 1, "a GPU takes a batch as a whole"
    operands = tuple((p.space, p.offset) for p in (*step.operands, *step.writes))
    grid = launch.grid
    return Launch(
        index, module, launch.function, grid.blocks, grid.threads, operands, launch.numbers
    )
