"""What a GPU runs, in the place of a shared library: machine code for architectures, and the
launches in order <-> bytes.

    "QCGPU" 0 0 0 | u64: length of what follows | JSON | the modules, one after the other

The JSON names each module's architecture and size, the functions of each, and the launches.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qcompiler.errors import Error

_MAGIC = b"QCGPU\0\0\0"
SPACES = ("input", "output", "weights", "workspace")
"""What an operand's offset counts: the caller's arrays by their numbers, bytes in the others."""


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
class Program:
    """Modules by architecture, as many for each; launches; the driver that is needed, as
    1000 * major + 10 * minor; and what the code expects of its manifest.
    """

    modules: Mapping[str, Sequence[bytes]]
    launches: tuple[Launch, ...]
    driver: int
    signature: int


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
    }
    text = json.dumps(head, separators=(",", ":")).encode()
    return b"".join((_MAGIC, struct.pack("<Q", len(text)), text, *(code for _, code in modules)))


def read(code: bytes, where: str) -> Program:
    """Bytes -> the program. Raises Error if they are none."""
    try:
        return _read(code)
    except (ValueError, KeyError, TypeError, struct.error, IndexError) as e:
        raise Error(f"this is no program for a GPU: {e}", where=where) from e


def _read(code: bytes) -> Program:
    if not code.startswith(_MAGIC):
        raise ValueError("it does not begin as one")
    (length,) = struct.unpack_from("<Q", code, len(_MAGIC))
    at = len(_MAGIC) + 8
    head = json.loads(code[at : at + length])
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
    return Program(modules, launches, int(head["driver"]), int(head["signature"]))


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
