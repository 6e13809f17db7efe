"""Plan for a GPU -> its program: every kernel's code once, compiled for an architecture, and the
launches of all steps in order.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, replace

from qcompiler.artifact.artifact import Artifact, Variant
from qcompiler.artifact.program import (
    MAGIC,
    Forecast,
    Launch,
    Program,
    Use,
    for_gpu,
    later,
    number_of,
    read,
)
from qcompiler.emit import cuda, nvrtc
from qcompiler.emit.cubin import Taken, taken
from qcompiler.emit.described import signature_of
from qcompiler.hardware import cpu
from qcompiler.hardware.gpu import Gpu
from qcompiler.hardware.isa import Device
from qcompiler.plan.plan import Plan, Step

_FUNCTIONS_A_MODULE = 8


def emit(plan: Plan) -> bytes:
    """Plan -> the bytes of its program. Raises Error without the compiler for CUDA."""
    return written(program_of(plan))


def written(program: Program) -> bytes:
    """A program -> bytes, the same for equal programs."""
    modules = [(name, code) for name, codes in program.modules.items() for code in codes]
    head = {
        "modules": [[name, len(code)] for name, code in modules],
        "launches": [
            [c.step, c.module, c.function, c.blocks, c.threads, c.operands, c.numbers]
            for c in program.launches
        ],
        "driver": program.driver,
        "signature": program.signature,
        "uses": {name: astuple(use) for name, use in program.uses.items()},
        "forecasts": [astuple(f) for f in program.forecasts],
    }
    text = json.dumps(head, separators=(",", ":")).encode()
    return b"".join((MAGIC, struct.pack("<Q", len(text)), text, *(code for _, code in modules)))


def program_of(plan: Plan) -> Program:
    """Plan -> its program. Raises Error without the compiler for CUDA."""
    known: dict[str, cuda.Launched] = {}
    for step in plan.steps:
        if step.kernel.name not in known:
            known[step.kernel.name] = cuda.launched(step.kernel)
    functions = {n: f for made in known.values() for n, f in made.functions.items()}
    names = list(functions)
    of = {n: i // _FUNCTIONS_A_MODULE for i, n in enumerate(names)}
    parts = [
        {n: functions[n] for n in names[i : i + _FUNCTIONS_A_MODULE]}
        for i in range(0, max(len(names), 1), _FUNCTIONS_A_MODULE)
    ]  # one, if only of what all code calls, where all is done in Python
    isa = plan.device.isa
    sources = [cuda.source(part, isa) for part in parts]
    with ThreadPoolExecutor(cpu.cores()) as pool:
        compiled = list(pool.map(lambda text: nvrtc.both(text, isa.name), sources))
    codes = [cubin for cubin, _ in compiled]
    launches = tuple(
        _launch(i, step, launch, of[launch.function], plan.parts)
        for i, step in enumerate(plan.steps)
        for launch in known[step.kernel.name].launches
    )
    uses = _uses(plan, [c for made in known.values() for c in made.launches], codes)
    forecasts = tuple(forecast(step, plan.device) for step in plan.steps)
    signature = signature_of(plan)
    modules = {isa.name: codes, later(isa.name): [text for _, text in compiled]}
    return Program(modules, launches, nvrtc.driver(), signature, uses, forecasts)


def foremost(artifacts: Sequence[Artifact]) -> list[Artifact]:
    """Artifacts of one model for different targets -> the same, of which only that for the newest
    architecture keeps what later GPUs run.
    """
    numbers = {i: number_of(v.isa) for i, a in enumerate(artifacts) for v in _of_gpus(a)}
    newest = max(numbers, key=lambda i: numbers[i], default=None)
    others = [i for i in numbers if i != newest]
    return [_alone(a) if i in others else a for i, a in enumerate(artifacts)]


def _of_gpus(artifact: Artifact) -> list[Variant]:
    return [v for v in artifact.manifest.variants if for_gpu(v.triple)]


def _alone(artifact: Artifact) -> Artifact:
    """An artifact of a variant for a GPU, without what later ones run."""
    (variant,), (binary,) = artifact.manifest.variants, artifact.binaries
    found = read(binary.code, artifact.manifest.name)
    own = replace(found, modules={variant.isa: found.modules[variant.isa]})
    return replace(artifact, binaries=(replace(binary, code=written(own)),))


def forecast(step: Step, device: Device) -> Forecast:
    """What the model of a GPU predicts for a step."""
    assert isinstance(device, Gpu)
    chosen = None if step.decision is None else step.decision.chosen
    if chosen is None:
        return Forecast(0.0, "launch")
    seconds = chosen.candidate.seconds
    if step.kernel.grid is None:
        return Forecast(seconds, "latency")  # of threads whose neighbours read other memory
    return Forecast(seconds, device.bound(seconds, step.bytes))


def _uses(plan: Plan, launches: Sequence[cuda.Launch], codes: Sequence[bytes]) -> dict[str, Use]:
    """Registers and memory of the launched functions, as the compiler reports them."""
    assert isinstance(plan.device, Gpu)
    sm = plan.device.multiprocessor
    told = {name: own for code in codes for name, own in taken(code).items()}
    found = {}
    for launch in launches:
        own, grid = told.get(launch.function, Taken()), launch.grid
        blocks = sm.occupancy(grid.threads, own.registers, grid.shared_bytes)
        share = blocks * grid.threads / sm.threads
        found[launch.function] = Use(own.registers, own.frame_bytes, grid.shared_bytes, share)
    return found


def _launch(index: int, step: Step, launch: cuda.Launch, module: int, parts: int) -> Launch:
    assert parts == 1, "a GPU takes a batch as a whole"
    operands = tuple((p.space, p.offset) for p in (*step.operands, *step.writes))
    grid = launch.grid
    return Launch(
        index, module, launch.function, grid.blocks, grid.threads, operands, launch.numbers
    )
