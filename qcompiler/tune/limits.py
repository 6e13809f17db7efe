"""The measured limits of this machine, restricted to an instruction set.

There are two kinds: multiply-accumulates per second of each product in the instruction set (sums in
registers, operands in L1, nothing else executed), and bytes per second read from each level of
memory. Together they form a roofline (Williams, Waterman and Patterson, "Roofline", CACM 2009):
no step is faster than the slower of the two.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import numpy as np

from qcompiler.artifact.artifact import StepFact
from qcompiler.emit.native import emit_kernel
from qcompiler.hardware.isa import Cpu, Isa
from qcompiler.hardware.products import BlockMac, Mac, TileMac, VectorMac, WarpMac
from qcompiler.ir import Array
from qcompiler.kernels.cpu.code import tir
from qcompiler.kernels.cpu.code.tir import Builder, Pointer
from qcompiler.kernels.registry import Kernel
from qcompiler.runtime.library import Code, Frame, Memory, aligned, aligned_copy

_ROUNDS, _FEW, _SECONDS = 50, 5, 0.3
"""Most runs of a timed kernel, and the most seconds to spend on them."""
_ITERATIONS = 5_000
_UNROLLED = 4
_SOURCE_BYTES = 8 * 256 + 16 * 64
_OUT_BYTES = 4096
_PASS_BYTES = 16 << 20  # read by each thread in a timed call
_MEMORY_BYTES = 256 << 20  # larger than most last-level caches
_KINDS = {"int8": "integer", "uint8": "integer", "bfloat16": "bf16", "float16": "f16"}


@dataclass(frozen=True)
class Limits:
    """`ops`: operations per second (a multiply-accumulate is two) by kind of operand: "integer",
    "bf16", "f16", "f32". `levels`: (bytes of a memory level, bytes per second read from it),
    nearest first.
    """

    ops: Mapping[str, float]
    levels: tuple[tuple[float, float], ...]

    def seconds(self, step: StepFact) -> float:
        """A lower bound of a step's time."""
        return max(self.arithmetic(step), self.traffic(step))

    def arithmetic(self, step: StepFact) -> float:
        """A lower bound of the seconds for a step's multiply-accumulates.

        A product the instruction set lacks is computed in float32.
        """
        kind = kind_of(step.operands)
        return 2 * step.macs / self.ops.get(kind, self.ops["f32"])

    def traffic(self, step: StepFact) -> float:
        """A lower bound of the seconds for reading and writing a step's operands, at the speed of
        the nearest memory level that holds them all.
        """
        rate = next(rate for holds, rate in self.levels if step.bytes <= holds)
        return step.bytes / rate

    def __or__(self, other: Limits) -> Limits:
        """The higher of two measurements of one machine, whose clock may vary."""
        levels = zip(self.levels, other.levels, strict=True)
        return Limits(
            {kind: max(rate, other.ops[kind]) for kind, rate in self.ops.items()},
            tuple((holds, max(rate, again)) for (holds, rate), (_, again) in levels),
        )


def kind_of(dtype: str) -> str:
    """The dtype of a step's operands -> the kind of its operations."""
    return _KINDS.get(dtype, "f32")


def measure(device: Cpu) -> Limits:
    """Time both kinds of limit on this machine, with the device's threads; about four seconds."""
    return Gauge(device).read()


class Gauge:
    """Code that measures the limits of a device, compiled once; `kinds`: only products of these
    kinds of operands, and of float32, which stands for what a device lacks.
    """

    def __init__(self, device: Cpu, kinds: Collection[str] | None = None) -> None:
        self._products: list[tuple[str, _Timed]] = []
        for mac in device.isa.inherited:
            left = mac.key[0]
            kind = "integer" if left in ("u8", "i8", "i16") else left
            if kinds is None or kind in kinds or kind == "f32":
                self._products.append((kind, _product(device, mac)))
        self._reads = _Reads(device)
        threads = device.threads
        self._caches = device.l1_bytes * threads, device.l2_bytes * threads, device.l3_bytes

    def read(self) -> Limits:
        """Measure them now; about a second."""
        ops: dict[str, float] = {}
        for kind, product in self._products:
            ops[kind] = max(ops.get(kind, 0.0), product.rate())
        levels = [(float(size), self._reads.rate(size // 2)) for size in self._caches]
        return Limits(ops, (*levels, (math.inf, self._reads.rate(_MEMORY_BYTES))))


@dataclass(frozen=True)
class _Timed:
    """Machine code, what it does in a run, and the bytes of its source and its output."""

    code: Code
    threads: int
    work: int
    source: int
    out: int

    def rate(self) -> float:
        """Its work per second, in the fastest of several runs."""
        return self.work / min(runs(self.code, self.threads, self.source, self.out))


def products(device: Cpu, mac: Mac, sums: int = 0) -> float:
    """Operations per second of one product, over all threads, with `sums` independent sums; 0: as
    many as registers hold.
    """
    return _product(device, mac, sums).rate()


def _product(device: Cpu, mac: Mac, sums: int = 0) -> _Timed:
    b, threads = Builder("products"), device.threads
    source, out = b.pointer("source", "uint8"), b.pointer("out", "uint8")
    with b.parallel(threads) as task:
        mine = out + task * _OUT_BYTES
        if isinstance(mac, TileMac):
            count = _tiles(b, device.isa, mac, source, mine)
        else:
            assert not isinstance(mac, WarpMac), "a CPU has no warps"
            count = _vectors(b, device.isa, mac, source, mine, sums)
    done = 2 * count * _ITERATIONS * mac.multiplies * threads
    return _Timed(built(b, device), threads, done, _SOURCE_BYTES, _OUT_BYTES * threads)


def _vectors(
    b: Builder, isa: Isa, mac: VectorMac | BlockMac, source: Pointer, out: Pointer, wanted: int
) -> int:
    """The product of two left values (one, for one sum) by as many vectors as registers hold sums
    of, or as `wanted` requests; returns products per iteration.
    """
    key = mac.key
    rows = 1 if wanted == 1 else 2
    vectors = max(wanted // rows, 1) if wanted else (isa.registers - 4 - mac.temporaries) // 2
    kind = "float32" if key[2] == "f32" else "int32"
    sums = b.registers(kind, mac.lanes, rows * vectors, "sum")
    sums.fill(0)
    words = source.view("float32" if key[1] == "f32" else "int32")
    with b.serial(_ITERATIONS, "i") as i:
        for step in range(_UNROLLED):
            at = b.let((i % 8) * 64 + step * 16)
            left = [b.let(tir.broadcast(words.load(at + i), mac.lanes)) for i in range(rows)]
            for v in range(vectors):
                right = b.let(words.load(at + 16 * (v % 8), mac.lanes))
                for i in range(rows):
                    sums[rows * v + i] = mac.emit(sums[rows * v + i], left[i], right)
    for i in range(sums.count):
        out.view(sums.dtype).store(i * mac.lanes, sums[i])
    return sums.count * _UNROLLED


def _tiles(b: Builder, isa: Isa, mac: TileMac, source: Pointer, out: Pointer) -> int:
    """Two tiles by two, loaded once; returns products per iteration."""
    do = isa.intrinsics
    shapes = do["tile_shapes"]({tile: (mac.rows, mac.lanes * 4) for tile in range(mac.tiles)})
    for i in range(0, len(shapes), 4):
        word = int.from_bytes(shapes[i : i + 4], "little", signed=True)
        out.view("int32").store(i // 4, tir.const(word))
    b.emit(do["tile_configure"](out.address()))
    for tile in range(mac.tiles):
        b.emit(do["tile_load"](tile, source.address(), tir.const(mac.lanes * 4)))
    with b.serial(_ITERATIONS, "i"):
        for tile in range(4):
            b.emit(mac.emit(tile, 4 + tile // 2, 6 + tile % 2))
    for tile in range(4):
        b.emit(do["tile_store"](tile, out.address(), tir.const(mac.lanes * 4)))
    b.emit(do["tile_release"]())
    return 4


def bandwidth(device: Cpu, size: int) -> float:
    """Bytes per second of repeated reads of `size` bytes, split among threads."""
    return _Reads(device).rate(size)


class _Reads:
    """Code that reads some bytes again and again, split among the device's threads: how many, and
    how often, is its second operand.
    """

    def __init__(self, device: Cpu) -> None:
        lanes, slots = device.isa.lanes(4), 8
        self.group, self.threads = lanes * slots, device.threads
        b = Builder("reads")
        source, sizes, out = (b.pointer(name, "int32") for name in ("source", "sizes", "out"))
        with b.parallel(self.threads) as task:
            iterations, again = b.let(sizes.load(0)), b.let(sizes.load(1))
            seen = b.registers("int32", lanes, slots, "seen")
            seen.fill(0)
            with b.serial(again, "again"), b.serial(iterations, "i") as i:
                at = b.let((task * iterations + i) * self.group)
                for i in range(slots):
                    seen[i] = seen[i] ^ source.load(at + i * lanes, lanes)
            for i in range(slots):
                out.store(task * self.group + i * lanes, seen[i])
        self.code = built(b, device)

    def rate(self, size: int) -> float:
        """Bytes per second of reads of `size` bytes."""
        group, threads = 4 * self.group, self.threads  # bytes
        iterations = max(size // threads // group, 1)
        again = max(_PASS_BYTES // (iterations * group), 1)
        sizes = np.array([iterations, again], np.int32)
        source, out = group * iterations * threads, group * threads
        return source * again / min(runs(self.code, threads, source, sizes, out))


def times(b: Builder, device: Cpu, source: int | Array, out: int | Array) -> list[float]:
    """A kernel of two pointers, and the data of each (an array, or a number of bytes set to 1) ->
    the seconds of each run.
    """
    return runs(built(b, device), device.threads, source, out)


def built(b: Builder, device: Cpu) -> Code:
    """A kernel of pointers -> its machine code, with one task per thread."""
    return Code(emit_kernel(Kernel(b.name, b.function(), tasks=device.threads), device.isa))


def runs(
    code: Code,
    threads: int,
    *operands: int | Array,
    before: Callable[[], None] = lambda: None,
) -> list[float]:
    """Machine code of such a kernel, and the data of each pointer -> the seconds of each run, with
    `before` called first.
    """
    memory = [_memory(each) for each in operands]
    frame = Frame(len(memory), memory[0], 0)
    frame.fill(memory)
    taken: list[float] = []
    while len(taken) < _ROUNDS and (len(taken) < _FEW or sum(taken) < _SECONDS):
        before()
        begin = time.perf_counter()
        frame.run(code, threads, 0, 1)
        taken.append(time.perf_counter() - begin)
    return taken


def _memory(wanted: int | Array) -> Memory:
    if not isinstance(wanted, int):
        return aligned_copy(wanted)
    made = aligned(np.dtype(np.uint8), (wanted,))
    made.array.fill(1)
    return made
