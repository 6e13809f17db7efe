"""Instructions -> what they take of a core's ports, by llvm-mca's tables of one CPU.

llvm-mca knows no tile instructions; those are costed in overlap.py from what the emulator saw. Two
things are put right. Its Golden Cove has one port for 512-bit floating-point and dot products, the
servers have two (Intel 64 and IA-32 Architectures Optimization Reference Manual, Golden Cove). And
512-bit loads use two of the three load ports; others, and prefetches, all three.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass, fields

CPU = "sapphirerapids"
DISPATCH = 6.0
"""Micro-operations a cycle."""

_SERVER = re.compile(
    r"v(p?dp|f?n?m(add|sub)|fn?m|add|sub|mul|max|min|cvt|rndscale|range|scalef|getexp|getmant|cmp)"
)
_TILE = ("tile", "tdp", "ldtilecfg", "sttilecfg")


@dataclass(frozen=True)
class Use:
    """Micro-operations by where they run; `vector` may go to port 0 or 5."""

    uops: float = 0.0
    vector: float = 0.0
    port0: float = 0.0
    port5: float = 0.0
    scalar: float = 0.0
    loads: float = 0.0
    stores: float = 0.0

    def __add__(self, other: Use) -> Use:
        return Use(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(Use)))

    def __mul__(self, count: float) -> Use:
        return Use(*(getattr(self, f.name) * count for f in fields(Use)))

    @property
    def vector_cycles(self) -> float:
        """Of the two vector ports."""
        return max(self.port0, self.port5, (self.vector + self.port0 + self.port5) / 2)

    @property
    def issue_cycles(self) -> float:
        """Of the five ports for whole numbers, two of them the vectors', and of dispatch."""
        alu = (self.scalar + self.vector + self.port0 + self.port5) / 5
        return max(alu, self.uops / DISPATCH)


NOTHING = Use()


def is_tile(instruction: str) -> bool:
    """Is it one of the tile instructions?"""
    return instruction.startswith(_TILE)


def uses(instructions: Iterable[str]) -> dict[str, Use]:
    """Instructions in AT&T syntax -> what each takes; {} of those that no table has is zero."""
    wanted = {_normal(i): i for i in instructions if not is_tile(i)}
    asked = [n for n in sorted(wanted) if n]
    found = dict(zip(asked, _tables(asked), strict=True))
    return {i: found.get(_normal(i), Use()) for i in instructions if not is_tile(i)}


def _normal(instruction: str) -> str:
    """Jumps and symbols are all alike."""
    text = re.sub(r"\s+", " ", instruction)
    if text.startswith("call"):
        return "nop"
    if text.startswith("j"):
        return text.split()[0] + " 64" if not text.split()[1].startswith("*") else "jmp *%rax"
    return re.sub(r"[$.\w]*[A-Za-z_.][$.\w@+-]*\(%rip\)", "64(%rip)", text)


def _tables(instructions: list[str]) -> list[Use]:
    tool = next((t for t in ("llvm-mca-19", "llvm-mca") if shutil.which(t)), None)
    if tool is None:
        raise SystemExit("llvm-mca is not installed: apt install llvm-19")
    command = [tool, "-mtriple=x86_64-linux-gnu", f"-mcpu={CPU}", "-instruction-tables", "-json"]
    done = subprocess.run(
        command, input="\n".join(instructions) + "\n", capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed: {done.stderr[:2000]}")
    report = json.loads(done.stdout)
    ports = [r.removeprefix("SPRPort") for r in report["TargetInfo"]["Resources"]]
    region = report["CodeRegions"][0]
    if len(region["Instructions"]) != len(instructions):
        raise SystemExit(f"llvm-mca left out instructions: {done.stderr[:2000]}")
    uops = [i["NumMicroOpcodes"] for i in region["InstructionInfoView"]["InstructionList"]]
    use: list[dict[str, float]] = [{} for _ in instructions]
    for entry in region["ResourcePressureView"]["ResourcePressureInfo"]:
        if entry["InstructionIndex"] < len(use):
            use[entry["InstructionIndex"]][ports[entry["ResourceIndex"]]] = entry["ResourceUsage"]
    return [_use(i, float(n), u) for i, n, u in zip(instructions, uops, use, strict=True)]


def _use(instruction: str, uops: float, ports: dict[str, float]) -> Use:
    p0, p1, p5 = (ports.get(p, 0.0) for p in ("00", "01", "05"))
    loads = sum(ports.get(p, 0.0) for p in ("02", "03", "11"))
    if "%zmm" not in instruction:
        loads *= 2 / 3
    stores = sum(ports.get(p, 0.0) for p in ("04", "09"))
    if not instruction.startswith(("v", "k")):
        scalar = p0 + p1 + p5 + sum(ports.get(p, 0.0) for p in ("06", "10"))
        return Use(uops, scalar=scalar, loads=loads, stores=stores)
    total, only0, only5 = p0 + p1 + p5, max(0.0, p0 - max(p1, p5)), max(0.0, p5 - p0)
    if "%zmm" in instruction and _SERVER.match(instruction):
        only0 = 0.0
    if p0 and p1 and p5:  # 0, 1 and 5 alike, 1 is closed while 512-bit vectors run
        only0 = only5 = 0.0
    flexible = max(0.0, total - only0 - only5)
    return Use(uops, flexible, only0, only5, loads=loads, stores=stores)
