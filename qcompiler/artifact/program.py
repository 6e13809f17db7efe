"""What a GPU runs, in the place of a shared library: machine code for architectures, and the
launches in order <-> bytes.

    "QCGPU" 0 0 0 | u64: length of what follows | JSON | the modules, one after the other

The JSON names each module's architecture and size, the functions of each, and the launches. Modules
of "compute_N" are PTX, which the driver of a GPU later than architecture N compiles.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qcompiler.errors import Error
from qcompiler.files import parsed

MAGIC = b"QCGPU\0\0\0"
SPACES = ("input", "output", "weights", "workspace")
"""What an operand's offset counts: the caller's arrays by their numbers, bytes in the others."""


def for_gpu(triple: str) -> bool:
    """Whether a variant's code is for a GPU."""
    return triple.startswith("nvptx")


def number_of(architecture: str) -> int:
    """The number at the end of an architecture's name."""
    return int(architecture.rpartition("_")[2])


def later(architecture: str) -> str:
    """An architecture -> how modules are called that GPUs later than it run."""
    return f"compute_{number_of(architecture)}"


@dataclass(frozen=True)
class Launch:
    """One start of a function: its step, its grid, its operands (space, offset), and the numbers
    that follow them.
    """

    step: int
    module: int
    function: str
    blocks: tuple[int, int, int]
    threads: int
    operands: tuple[tuple[str, int], ...]
    numbers: tuple[int, ...] = ()


@dataclass(frozen=True)
class Use:
    """What a function takes of a multiprocessor."""

    registers: int
    """Of a thread; 0: not known."""
    frame_bytes: int
    """Memory of a thread for what did not fit its registers."""
    shared_bytes: int
    """Of a block."""
    occupancy: float
    """Threads that run at the same time, of the most that could."""


@dataclass(frozen=True)
class Forecast:
    """What a step is predicted to take, and what most of it is due to: "memory", "arithmetic",
    "latency" or "launch".
    """

    seconds: float
    bound: str


@dataclass(frozen=True)
class Program:
    """Modules by architecture, as many for each; launches; the driver that is needed, as
    1000 * major + 10 * minor; and what the code expects of its manifest.
    """

    modules: Mapping[str, Sequence[bytes]]
    launches: tuple[Launch, ...]
    driver: int
    signature: int
    uses: Mapping[str, Use]
    """By function."""
    forecasts: tuple[Forecast, ...]
    """By step."""


def read(code: bytes, where: str) -> Program:
    """Bytes -> the program. Raises Error if they are none."""
    try:
        return _read(code)
    except (ValueError, KeyError, TypeError, struct.error, IndexError) as e:
        raise Error(f"this is no program for a GPU: {e}", where=where) from e


def _read(code: bytes) -> Program:
    if not code.startswith(MAGIC):
        raise ValueError("it does not begin as one")
    (length,) = struct.unpack_from("<Q", code, len(MAGIC))
    at = len(MAGIC) + 8
    head = parsed(code[at : at + length])
    at += length
    modules: dict[str, list[bytes]] = {}
    for name, size in head["modules"]:
        modules.setdefault(str(name), []).append(code[at : at + int(size)])
        at += int(size)
    if at != len(code):
        raise ValueError("its length is another")
    launches = tuple(map(_launch, head["launches"]))
    counts = {len(codes) for codes in modules.values()}
    if len(counts) != 1 or any(not 0 <= c.module < min(counts) for c in launches):
        raise ValueError("a launch names no module")
    uses = {str(n): _use(*raw) for n, raw in head["uses"].items()}
    if any(c.function not in uses for c in launches):
        raise ValueError("a launch names no function")
    forecasts = tuple(Forecast(float(s), str(b)) for s, b in head["forecasts"])
    if any(not 0 <= c.step < len(forecasts) for c in launches):
        raise ValueError("a launch is of no step")
    driver, signature = int(head["driver"]), int(head["signature"])
    return Program(modules, launches, driver, signature, uses, forecasts)


def _use(registers: Any, frame: Any, shared: Any, occupancy: Any) -> Use:
    return Use(int(registers), int(frame), int(shared), float(occupancy))


def _launch(raw: Sequence[Any]) -> Launch:
    step, module, function, blocks, threads, operands, numbers = raw
    x, y, z = map(int, blocks)
    made = tuple((str(space), int(offset)) for space, offset in operands)
    if any(space not in SPACES or offset < 0 for space, offset in made):
        raise ValueError("an operand lies nowhere")
    return Launch(
        int(step),
        int(module),
        str(function),
        (x, y, z),
        int(threads),
        made,
        tuple(map(int, numbers)),
    )
