"""Kernels for a GPU, and arrays -> what they make of these, run on this CPU.

The source that would be compiled for the GPU is compiled by g++ instead, and emulator.cc runs it.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from kernel_harness import Fenced, compare, expected, region_of
from poison import twice

from qcompiler import plugins
from qcompiler.emit import cuda, nvrtc
from qcompiler.errors import Skip
from qcompiler.hardware.gpu import Gpu
from qcompiler.hardware.isa import ISAS
from qcompiler.ir import Array, Graph, Node, numpy_dtype
from qcompiler.kernels.registry import Grid, Kernel, Knobs, Region, Ways, choose
from qcompiler.runtime.cuda import driver as drivers

HERE = Path(__file__).parent
_MOST_PARAMETERS = 32


def gpu(architecture: str = "sm_80") -> Gpu:
    """A GPU of an architecture."""
    plugins.load_all()
    return Gpu(
        name="test",
        isa=ISAS[architecture],
        multiprocessors=16,
        hz=1e9,
        memory_bytes_per_second=500e9,
        l2_bytes=4 << 20,
        macs_per_cycle={"f32": 128, "f16": 512, "bf16": 512, "i8": 1024},
    )


@cache
def _folder() -> Path:
    """Where compiled code is kept during this session."""
    return Path(tempfile.mkdtemp(prefix="emulated-"))


@cache
def compiler() -> str:
    """g++, without which kernels cannot be run."""
    found = os.environ.get("CXX", "g++")
    try:
        subprocess.run([found, "--version"], check=True, capture_output=True)
    except OSError:
        pytest.skip("there is no g++ to compile kernels for this CPU")
    return found


_ALWAYS = ("-std=c++17", "-fPIC", "-w")


def compiled(text: str, *options: str, libraries: Sequence[Path] = ()) -> Path:
    """C++ -> the path of a shared library; equal sources are compiled once."""
    name = hashlib.sha256("\0".join((text, *options)).encode()).hexdigest()[:24]
    path = _folder() / f"{name}.so"
    if not path.exists():
        words = [compiler(), *_ALWAYS, "-shared", *options, "-x", "c++", "-"]
        words += ["-x", "none", *map(str, libraries), "-o", str(path)]
        made = subprocess.run(words, input=text, text=True, capture_output=True)
        assert made.returncode == 0, made.stderr[:3000]
    return path


_EXACT = ("-O1", "-ffp-contract=off", "-fno-strict-aliasing", "-fwrapv")


@cache
def _header() -> Path:
    """on_cpu.h, compiled once for all kernels."""
    path = _folder() / "on_cpu.h"
    path.write_bytes((HERE / path.name).read_bytes())
    words = [compiler(), *_ALWAYS, *_EXACT, "-x", "c++-header", str(path), "-o", f"{path}.gch"]
    subprocess.run(words, check=True, capture_output=True)
    return path


@cache
def emulator() -> ctypes.CDLL:
    """The library that runs kernels, for all others to see."""
    path = compiled((HERE / "emulator.cc").read_text(), "-O2")
    library = ctypes.CDLL(str(path), ctypes.RTLD_GLOBAL)
    library.emulate.restype = ctypes.c_char_p
    return library


def host_code(source: str) -> Path:
    """CUDA C++ -> a shared library of the same functions for this CPU, and the bounds of its shared
    memory.
    """
    bounds = (
        "__attribute__((used)) __shared__ char no_shared_memory[1];\n"
        "extern char __start_shared_memory[], __stop_shared_memory[];\n"
        'extern "C" void *shared_bound(int end) {'
        " return end ? __stop_shared_memory : __start_shared_memory; }\n"
    )
    head = f'#include "{_header()}"\n'
    source = source.replace("#include <cuda_fp16.h>", "")
    return compiled(head + source + bounds, *_EXACT)


def put_for_this_cpu(patch: pytest.MonkeyPatch) -> None:
    """What is compiled from now on is for this CPU."""
    patch.setattr(nvrtc, "both", lambda source, _: 2 * (host_code(source).read_bytes(),))
    patch.setattr(nvrtc, "driver", lambda: 13000)
    patch.setattr(nvrtc, "available", lambda: "")


class Code:
    """Functions for this CPU."""

    def __init__(self, source: str) -> None:
        self.emulator = emulator()
        self.library = ctypes.CDLL(str(host_code(source)))
        self.library.shared_bound.restype = ctypes.c_void_p
        self.begin, self.end = (self.library.shared_bound(end) for end in (0, 1))
        self.seed = 1

    def launch(
        self, name: str, grid: Grid, rooms: Sequence[_Room], numbers: Sequence[int], rubbish: int
    ) -> None:
        """Run a function on a grid, the threads of each block in an order of their own."""
        values = [*(r.address for r in rooms), *numbers]
        self.seed = self.seed * 6364136223846793005 + 1442695040888963407 & (1 << 64) - 1
        assert len(values) <= _MOST_PARAMETERS
        given = (ctypes.c_int64 * _MOST_PARAMETERS)(*values)
        error = self.emulator.emulate(
            ctypes.cast(self.library[name], ctypes.c_void_p),
            (ctypes.c_uint * 3)(*grid.blocks),
            grid.threads,
            given,
            ctypes.c_void_p(self.begin),
            ctypes.c_uint64(self.end - self.begin),
            ctypes.c_uint64(self.seed),
            rubbish,
        )
        assert error is None, f"{name}: {error.decode()}"


class OnGpu:
    """Functions for the GPU of this machine: what benchmarks/gpu.sh checks."""

    def __init__(self, source: str) -> None:
        self.gpu = drivers.Gpu(drivers.driver(drivers.LIBRARY), 0)
        major, minor = self.gpu.capability
        self.modules = drivers.Modules(self.gpu, [nvrtc.compile(source, f"sm_{major}{minor}")])
        self.stream = drivers.Stream(self.gpu)

    def launch(
        self, name: str, grid: Grid, rooms: Sequence[_Room], numbers: Sequence[int], rubbish: int
    ) -> None:
        """Run a function on a grid; `rooms` are copied there and back."""
        function = self.modules.function(0, name)
        memory = [drivers.Memory(self.gpu, r.bytes.nbytes) for r in rooms]
        with self.gpu.current() as call:
            for room, there in zip(rooms, memory, strict=True):
                call("cuMemcpyHtoD_v2", *_copied(there.address, room.address, room.bytes.nbytes))
            given = [*(m.address for m in memory), *numbers]
            self.stream.launch(call, function, grid.blocks, grid.threads, given)
            for room, there in zip(rooms, memory, strict=True):
                to, source, size = _copied(room.address, there.address, room.bytes.nbytes)
                call("cuMemcpyDtoHAsync_v2", to, source, size, self.stream.handle)
            call("cuStreamSynchronize", self.stream.handle)


def _copied(
    to: int, source: int, size: int
) -> tuple[ctypes.c_uint64, ctypes.c_uint64, ctypes.c_size_t]:
    """The operands of a copy."""
    return ctypes.c_uint64(to), ctypes.c_uint64(source), ctypes.c_size_t(size)


def run(kernel: Kernel, region: Region, device: Gpu, values: Mapping[Node, Array]) -> Array:
    """A kernel on arrays, in fenced memory; on this machine's GPU with QCOMPILER_ON_GPU=1."""
    made = cuda.launched(kernel)
    place = OnGpu if os.environ.get("QCOMPILER_ON_GPU") else Code
    code = place(cuda.source(made.functions, device.isa))
    operands = []
    for i, node in enumerate(region.inputs):
        array = np.ascontiguousarray(values[node])
        if i in kernel.pack:
            array = np.ascontiguousarray(kernel.pack[i](array))
        operands.append(_Room(array.nbytes))
        operands[-1].hold(array)
    type = region.output.type
    written = [_Room(type.bytes)]
    if kernel.scratch_bytes:
        written.append(_Room(-(-kernel.scratch_bytes // 64) * 64))

    def call(arrays: Mapping[Node, Array], poison: int) -> Array:
        for node, memory in zip(region.inputs, operands, strict=True):
            if not node.is_constant:
                memory.hold(np.ascontiguousarray(arrays[node]))
        for memory in written:
            memory.bytes[:] = poison
        rooms = [*operands, *written]
        for launch in made.launches:
            code.launch(launch.function, launch.grid, rooms, launch.numbers, poison)
        return written[0].bytes.view(numpy_dtype(type.dtype)).reshape(type.dims).copy()

    return twice(call, values)


class _Room(Fenced):
    """Fenced memory that begins at a multiple of 16 bytes, as memory of a GPU does."""

    def __init__(self, size: int) -> None:
        super().__init__(-(-size // 16) * 16)
        self.bytes = self.bytes[:size]


def made(
    output: Node, root: Node | None, inputs: Sequence[Node], device: Gpu
) -> tuple[Kernel, Region]:
    """The kernel chosen for the region that ends in `output`."""
    region = region_of(Graph(tuple(inputs), (output,), ("y",)), root)
    kernel = choose(region, device).kernel
    assert isinstance(kernel, Kernel), kernel
    return kernel, region


def check_all(
    generator: Ways,
    output: Node,
    root: Node,
    arrays: Sequence[Array],
    inputs: Sequence[Node],
    device: Gpu,
    *,
    rtol: float = 0.0,
    atol: float = 0.0,
) -> list[Knobs]:
    """As `check`, for every candidate of a generator; their knobs."""
    region = region_of(Graph(tuple(inputs), (output,), ("y",)), root)
    values = dict(zip(inputs, arrays, strict=True))
    values |= {n: n.array for n in region.inputs if n.is_constant}
    want = expected(Graph(tuple(inputs), (output,), ("y",)), values)
    found = generator(region, device)
    assert not isinstance(found, Skip), found
    knobs = []
    for candidate in found:
        kernel = candidate.build()
        assert isinstance(kernel, Kernel), kernel
        compare(run(kernel, region, device, values), want, rtol=rtol, atol=atol)
        knobs.append(candidate.knobs)
    return knobs


def check(
    output: Node,
    root: Node | None,
    arrays: Sequence[Array],
    inputs: Sequence[Node],
    device: Gpu,
    *,
    ulp: float = 0,
    rtol: float = 0.0,
    atol: float = 0.0,
) -> Kernel:
    """Make the kernel of the region that ends in `output`, run it, and compare, by default
    exactly.
    """
    kernel, region = made(output, root, inputs, device)
    values = dict(zip(inputs, arrays, strict=True))
    values |= {n: n.array for n in region.inputs if n.is_constant}
    graph = Graph(tuple(inputs), (output,), ("y",))
    want = expected(graph, values)
    compare(run(kernel, region, device, values), want, ulp=ulp, rtol=rtol, atol=atol)
    return kernel
