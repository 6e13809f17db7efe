"""This machine -> its features and caches, as the system reports them (never the CPU's name).
targets/ says which features an instruction set needs, and what it must request of the system.
"""

from __future__ import annotations

import ctypes
import os
import platform
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from math import inf
from pathlib import Path

_HWCAPS: Mapping[str, Mapping[str, tuple[int, int]]] = {
    "aarch64": {
        "asimd": (16, 1),
        "atomics": (16, 8),
        "fphp": (16, 9),
        "asimdhp": (16, 10),
        "asimddp": (16, 20),
        "asimdfhm": (16, 23),
        "i8mm": (26, 13),
        "bf16": (26, 14),
    },
    "armv7": {"simd": (16, 12), "vfpv4": (16, 16)},
    "riscv64": {"v": (16, 21)},
}
"""Features of an architecture -> word of the auxiliary vector (AT_HWCAP, AT_HWCAP2) and bit in it
(arch/{arm64,arm,riscv}/include/uapi/asm/hwcap.h of the kernel).
"""
_SAME = {"armv7l": "armv7", "armv8l": "armv7"}
"""What Linux calls an architecture -> what compilers call it."""


def machine() -> str:
    """This machine's architecture, as a triple's first word; empty when unknown."""
    return _SAME.get(platform.machine(), platform.machine())


@cache
def features() -> frozenset[str]:
    """Feature names of the CPU as the kernel spells them in /proc/cpuinfo; empty when unknown."""
    if machine() in _HWCAPS and platform.system() == "Linux":
        return features_of(_auxiliary, machine())
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return frozenset()
    match = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    return frozenset(match.group(1).split() if match else ())


def granted(call: Sequence[int]) -> bool:
    """A Linux system call (its number, then arguments) that requests something -> whether that is
    granted. An empty request always is.
    """
    if not call:
        return True
    if platform.system() != "Linux":
        return False
    return int(ctypes.CDLL(None).syscall(*map(ctypes.c_long, call))) == 0


def cores() -> int:
    """Processors that this process may use all the time: by its affinity, and within the limits of
    its control groups.
    """
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else ()
    return max(1, int(min(len(allowed) or os.cpu_count() or 1, quota())))


def nodes(root: Path = Path("/")) -> list[frozenset[int]]:
    """The processors of each NUMA node that this process may use, in the nodes' order; one node of
    all where the system does not tell.
    """
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
    paths = root.glob("sys/devices/system/node/node[0-9]*/cpulist")
    found = []
    for path in sorted(paths, key=lambda p: int(p.parent.name[len("node") :])):
        try:
            found.append(frozenset(_listed(path.read_text()) & allowed))
        except (OSError, ValueError):
            return [frozenset(allowed)]
    return [node for node in found if node] or [frozenset(allowed)]


def _listed(text: str) -> set[int]:
    """ "0-3,8" -> {0, 1, 2, 3, 8}; nothing for no word (a node of memory alone)."""
    found: set[int] = set()
    for word in text.strip().split(",") if text.strip() else ():
        first, _, last = word.partition("-")
        found.update(range(int(first), int(last or first) + 1))
    return found


def quota(root: Path = Path("/")) -> float:
    """CPU time a second that control groups (of both versions) grant this process; infinite without
    a limit.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return inf
    least = inf
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        for mount in (controllers, "cpu") if controllers else ("", "unified"):
            group = root / "sys/fs/cgroup" / mount
            for part in ("", *path.strip("/").split("/")):
                group = group / part
                least = min(least, _group_quota(group))
    return least


def _group_quota(group: Path) -> float:
    """CPU time a second of one control group."""
    try:
        if (group / "cpu.max").exists():
            most, period = (group / "cpu.max").read_text().split()
        else:
            most, period = (
                (group / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period")
            )
        found = inf if most == "max" else int(most) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return inf
    return found if found > 0 else inf  # version 1 has -1 for no limit


def features_of(word: Callable[[int], int], machine: str = "aarch64") -> frozenset[str]:
    """The features of an architecture by `word`, the auxiliary vector's words by number. That is
    what this process has; /proc may be another machine's, under emulation.
    """
    return frozenset(name for name, (at, bit) in _HWCAPS[machine].items() if word(at) >> bit & 1)


def _auxiliary(number: int) -> int:
    """A word that the kernel passed to this process at its start."""
    read = ctypes.CDLL(None).getauxval
    read.argtypes, read.restype = (ctypes.c_ulong,), ctypes.c_ulong
    return int(read(number))


@cache
def cache_bytes(level: int) -> int:
    """Size of the first core's data cache of a level (1, 2, 3); 0 when unknown."""
    size = _cache(level, "size")
    unit = {"K": 1 << 10, "M": 1 << 20}.get(size[-1:], 1)
    return int(size.rstrip("KM")) * unit if size else 0


def line_bytes() -> int:
    """Size of a line of the first-level data cache; 0 when unknown."""
    return int(_cache(1, "coherency_line_size") or 0)


def way_bytes() -> int:
    """Size of a way of the first-level data cache; 0 when unknown."""
    ways = int(_cache(1, "ways_of_associativity") or 0)
    return cache_bytes(1) // ways if ways else 0


def _cache(level: int, fact: str) -> str:
    """A fact of the first core's data cache of a level; empty when unknown."""
    root = Path("/sys/devices/system/cpu/cpu0/cache")
    for index in sorted(root.glob("index*")) if root.exists() else ():
        try:
            kind = (index / "type").read_text().strip()
            if kind != "Instruction" and int((index / "level").read_text()) == level:
                found = (index / fact).read_text().strip()
                return found if re.fullmatch(r"\d+[KM]?", found) else ""
        except (OSError, ValueError):
            continue
    return ""
