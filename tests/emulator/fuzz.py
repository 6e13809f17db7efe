"""A seed -> random instructions, run under the emulator and by reference.c, equal bit by bit.

The assembler encodes them, so registers, addressing modes and displacements take every form.
For a long hunt: `for seed in itertools.count(): fuzz.vectors(seed); fuzz.tiles(seed)`.
"""

import ctypes
import functools
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from . import SOURCE, compile_library, load

Bytes = NDArray[np.uint8]

# The memory operands live at an address that fits a 32-bit displacement.
ARENA, ARENA_BYTES = 0x2000_0000, 1 << 16
REGISTERS = ("rax", "rcx", "rdx", "rbx", "rbp", "rsi", "rdi", *(f"r{i}" for i in range(8, 16)))
DISPLACEMENTS = (0, 1), (-128, 128), (-(1 << 27), 1 << 27)  # none, 8 bits, 32 bits
SAVED = ("rbx", "rbp", "r12", "r13", "r14", "r15")

# (mnemonic, kind as in reference.c or -1 for words, saturates, is AVX-VNNI and not AVX-VNNI-INT8)
DOTS = (
    ("vpdpbusd", 7, False, True), ("vpdpbusds", 7, True, True),
    ("vpdpwssd", -1, False, True), ("vpdpwssds", -1, True, True),
    ("vpdpbuud", 6, False, False), ("vpdpbuuds", 6, True, False),
    ("vpdpbsud", 8, False, False), ("vpdpbsuds", 8, True, False),
    ("vpdpbssd", 9, False, False), ("vpdpbssds", 9, True, False),
)  # fmt: skip
CONFIGURE, RELEASE, REPORT, ZERO, LOAD, STORE = range(6)
PRODUCTS = ("tdpbuud", "tdpbusd", "tdpbsud", "tdpbssd", "tdpbf16ps")  # kinds 6 to 10


@functools.cache
def reference() -> ctypes.CDLL:
    """-> reference.c, compiled and loaded."""
    return compile_library(SOURCE.with_name("reference.c"), "-mfma")


@functools.cache
def arena() -> Bytes:
    """-> the bytes at ARENA, mapped once."""
    libc = ctypes.CDLL(None)
    libc.mmap.restype = ctypes.c_void_p
    read_write, private_anonymous_fixed_noreplace = 3, 0x100022
    sizes = ctypes.c_void_p(ARENA), ctypes.c_size_t(ARENA_BYTES)
    address = libc.mmap(*sizes, read_write, private_anonymous_fixed_noreplace, -1, ctypes.c_long(0))
    assert address == ARENA, "the fixed address is taken"
    return np.ctypeslib.as_array((ctypes.c_uint8 * ARENA_BYTES).from_address(ARENA))


def pointer(array: NDArray[np.generic]) -> ctypes.c_void_p:
    """Array -> the address of its first element."""
    return ctypes.c_void_p(array.ctypes.data)


def assemble(functions: Sequence[str]) -> ctypes.CDLL:
    """Assembly text of functions f0, f1, ... -> the loaded library."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "cases.s"
        labelled = (f".globl f{i}\nf{i}:\n{body}" for i, body in enumerate(functions))
        ending = (
            ".data\nstack: .quad 0\nafter: .quad 0\nslot: .skip 64\n"
            ".balign 64\nxsave: .skip 24\n.long 0x1F80\n.skip 4068\n"  # with an MXCSR for XRSTOR
            '.section .note.GNU-stack,"",@progbits\n'
        )
        source.write_text(".text\n" + "\n".join(labelled) + "\n" + ending)
        return compile_library(source)


def enter() -> str:
    """-> the code that begins each function: saves what the caller owns."""
    return "".join(f"push %{r}\n" for r in SAVED) + "mov %rsp, stack(%rip)\n"


def leave() -> str:
    """-> the code that ends each function."""
    pops = "".join(f"pop %{r}\n" for r in reversed(SAVED))
    return f"mov stack(%rip), %rsp\nvzeroupper\n{pops}ret\n"


def displacement(rng: np.random.Generator) -> int:
    """-> a displacement of any encoded size."""
    return int(rng.integers(*DISPLACEMENTS[rng.integers(3)]))


def address(rng: np.random.Generator, target: int) -> tuple[str, str]:
    """A place in the arena -> code that sets registers up, and an operand that means it then."""
    disp, scale, step = (
        displacement(rng),
        1 << int(rng.integers(4)),
        int(rng.integers(-1 << 40, 1 << 40)),
    )
    base, index = rng.choice(REGISTERS, 2)
    match rng.choice(["base", "base+index", "twice", "index", "absolute"]):
        case "base":
            return f"movabs ${target - disp}, %{base}\n", f"{disp}(%{base})"
        case "base+index" if base != index:
            setup = f"movabs ${target - disp - step * scale}, %{base}\nmovabs ${step}, %{index}\n"
            return setup, f"{disp}(%{base},%{index},{scale})"
        case "twice":
            value, rest = divmod(target - disp, 1 + scale)
            return f"movabs ${value}, %{base}\n", f"{disp + rest}(%{base},%{base},{scale})"
        case "index":
            value, rest = divmod(target - disp, scale)
            return f"movabs ${value}, %{index}\n", f"{disp + rest}(,%{index},{scale})"
        case _:
            return "", f"{target}"


@dataclass(frozen=True)
class Place:
    """A memory operand: code for its registers, its text, and a text of the same place before."""

    setup: str
    operand: str
    beforehand: str


def place(rng: np.random.Generator) -> Place:
    """-> 32 bytes anywhere, addressed anyhow."""
    offset, scale, step = (
        int(rng.integers(0, 4096)),
        1 << int(rng.integers(4)),
        int(rng.integers(-256, 256)),
    )
    index = rng.choice(REGISTERS)
    match rng.choice(["arena", "arena", "rip", "stack", "stack+index"]):
        case "rip":
            return Place("", f"slot+{offset % 32}(%rip)", f"slot+{offset % 32}(%rip)")
        case "stack":
            return Place("", f"{offset}(%rsp)", f"{offset}(%rsp)")
        case "stack+index":
            operand = f"{offset - step * scale}(%rsp,%{index},{scale})"
            return Place(f"mov ${step}, %{index}\n", operand, f"{offset}(%rsp)")
        case _:
            setup, operand = address(rng, ARENA + offset)
            return Place(setup, operand, f"{ARENA + offset}")


def vector_function(text: str, where: Place, width: str) -> str:
    """An instruction -> f(registers, after, operand): loads all registers, performs it, stores all.

    With `width` xmm, AVX is in its initial state before, and so left out of the signal frame.
    """
    load, initial = {
        "xmm": ("movdqu", "mov $4, %eax\nxor %edx, %edx\nxrstor xsave(%rip)\n"),
        "ymm": ("vmovdqu", ""),
        "zmm": ("vmovdqu64", ""),
    }[width]
    loads = "".join(f"{load} {64 * i}(%rdi), %{width}{i}\n" for i in range(16))
    store, stored = ("vmovdqu64", "zmm") if width == "zmm" else ("vmovdqu", "ymm")
    stores = "".join(f"{store} %{stored}{i}, {64 * i}(%rax)\n" for i in range(16))
    return (
        f"{enter()}sub $8192, %rsp\nmov %rsi, after(%rip)\n"
        f"vmovdqu (%rdx), %ymm0\nvmovdqu %ymm0, {where.beforehand}\nvzeroall\n{initial}{loads}"
        f"{where.setup}{text}\nmov after(%rip), %rax\n{stores}{leave()}"
    )


@dataclass(frozen=True)
class Dot:
    """One vector instruction: its text, its function, and what reference.c needs to know of it."""

    text: str
    function: str
    kind: int
    saturates: bool
    bytes: int
    registers: tuple[int, int, int]
    in_memory: bool
    width: str


def dot(rng: np.random.Generator, *, int8: bool, zmm: bool) -> Dot:
    """-> a random vector instruction, its third operand more often in memory than not."""
    kinds = [kind for kind in DOTS if int8 or kind[3]]
    name, kind, saturates, vnni = kinds[rng.integers(len(kinds))]
    c, a, b = rng.integers(0, 16, 3).tolist()
    size, register = ((16, "xmm"), (32, "ymm"))[rng.integers(2)]
    where, in_memory = place(rng), rng.random() < 0.7
    last = where.operand if in_memory else f"%{register}{b}"
    text = f"{'{vex} ' if vnni else ''}{name} {last}, %{register}{a}, %{register}{c}"
    width = ("xmm", "ymm", "zmm")[rng.integers(3 if zmm else 2)]
    function = vector_function(text, where, width)
    return Dot(text, function, kind, saturates, size, (c, a, b), in_memory, width)


def vectors(seed: int, count: int = 100, *, int8: bool = False, zmm: bool = False) -> None:
    """`count` random dot products, each checked on all sixteen registers; raises AssertionError.

    `int8` adds AVX-VNNI-INT8 (binutils 2.40), `zmm` looks at the upper halves (a CPU with AVX-512).
    """
    rng = np.random.default_rng(seed)
    dots = [dot(rng, int8=int8, zmm=zmm) for _ in range(count)]
    load()
    arena()
    library = assemble([d.function for d in dots])
    for i, d in enumerate(dots):
        registers = rng.integers(0, 256, (16, 64), dtype=np.uint8)
        registers[rng.random((16, 64)) < 0.3] = rng.choice([0x80, 0x7F, 0xFF, 0])
        operand, got = rng.integers(0, 256, 32, dtype=np.uint8), np.zeros((16, 64), np.uint8)
        getattr(library, f"f{i}")(pointer(registers), pointer(got), pointer(operand))
        expected, (c, a, b) = registers.copy(), d.registers
        expected[:, {"xmm": 16, "ymm": 32, "zmm": 64}[d.width] :] = 0
        last = operand if d.in_memory else expected[b].copy()
        numbers = (ctypes.c_long(x) for x in (d.kind, int(d.saturates), d.bytes, c, a))
        reference().run_vector(pointer(expected), *numbers, pointer(last))
        assert np.array_equal(got, expected), f"seed {seed}, {d}:\n{got[c]}\n{expected[c]}"


# A tile program's arena: configurations, then what is only read, then what is read and written.
SOURCE_AT, TARGET_AT = 4096, 40960


class Program:
    """One random tile program: its assembly in `text`, and in `steps` the same for reference.c."""

    def __init__(self, rng: np.random.Generator, *, floats: bool) -> None:
        self.rng, self.floats = rng, floats
        self.text: list[str] = []
        self.steps: list[tuple[int, ...]] = []
        self.configs = [self.config() for _ in range(SOURCE_AT // 64)]
        self.rows, self.row_bytes, self.start_row = [0] * 8, [0] * 8, 0
        self.inputs: set[int] = set()  # tiles that hold nothing but what was read from the source
        self.configure()

    def config(self) -> Bytes:
        """-> a valid configuration, made so that many triples of tiles can be multiplied."""
        config = np.zeros(64, np.uint8)
        m, k, n = self.rng.integers(1, 17, 3)
        shapes = [(m, 4 * n), (m, 4 * k), (k, 4 * n), (k, 4 * k), (n, 4 * n), (0, 0), (m, 4 * m)]
        shape = np.array(shapes)[self.rng.integers(0, len(shapes), 8)]
        config[0], config[16:32:2], config[48:56] = 1, shape[:, 1], shape[:, 0]
        config[1] = max(0, int(self.rng.integers(-32, 16)))
        return config

    def step(self, text: str, kind: int, *tiles: int, offset: int = 0, stride: int = 0) -> None:
        """One instruction, in text for the assembler and in numbers for reference.c."""
        self.text.append(text)
        self.steps.append((kind, *tiles, *(3 - len(tiles)) * [0], offset, stride))
        if kind >= ZERO:
            self.start_row = 0

    def configure(self) -> None:
        """LDTILECFG of one of the configurations."""
        i = int(self.rng.integers(len(self.configs)))
        config = self.configs[i]
        setup, operand = address(self.rng, ARENA + 64 * i)
        self.step(f"{setup}ldtilecfg {operand}", CONFIGURE, offset=64 * i)
        self.rows, self.row_bytes = config[48:56].tolist(), config[16:32:2].tolist()
        self.start_row, self.inputs = int(config[1]), set(range(8))

    def transfer(self, name: str, kind: int, low: int, high: int) -> None:
        """A load or store of a random tile at a random place between `low` and `high`."""
        fitting = [t for t in range(8) if self.rows[t] > self.start_row]
        if not fitting:
            return
        tile, grain = int(self.rng.choice(fitting)), 4 if self.floats else 1
        stride = int(self.rng.integers(-1000, 1000) * self.rng.integers(2)) // grain * grain
        first, last = low + max(0, -15 * stride), high - 64 - max(0, 15 * stride)
        offset = int(self.rng.integers(-(-first // grain), last // grain)) * grain
        scale = int(self.rng.choice([s for s in (1, 2, 4, 8) if stride % s == 0]))
        base, index = self.rng.choice(REGISTERS, 2, replace=False)
        disp = displacement(self.rng)
        setup = f"movabs ${ARENA + offset - disp}, %{base}\nmov ${stride // scale}, %{index}\n"
        bare = stride == 0 and self.rng.integers(2)
        memory = f"{disp}(%{base})" if bare else f"{disp}(%{base},%{index},{scale})"
        operands = f"%tmm{tile}, {memory}" if kind == STORE else f"{memory}, %tmm{tile}"
        self.step(f"{setup}{name} {operands}", kind, tile, offset=offset, stride=stride)
        if kind == LOAD:
            (self.inputs.add if low == SOURCE_AT else self.inputs.discard)(tile)

    def multiply(self) -> None:
        """A product of three tiles that fit."""
        rows, row_bytes = self.rows, self.row_bytes
        sources = self.inputs if self.floats else set(range(8))
        fitting = [
            (c, a, b)
            for a in sources
            for b in sources - {a}
            for c in set(range(8)) - {a, b}
            if rows[a]
            and rows[c] == rows[a]
            and row_bytes[a] == 4 * rows[b]
            and row_bytes[c] == row_bytes[b]
        ]
        if not fitting or self.start_row:
            return
        c, a, b = fitting[self.rng.integers(len(fitting))]
        which = 4 if self.floats else int(self.rng.integers(4))
        self.step(f"{PRODUCTS[which]} %tmm{b}, %tmm{a}, %tmm{c}", 6 + which, c, a, b)
        self.inputs.discard(c)

    def grow(self) -> None:
        """One more instruction, of a random kind that is legal now."""
        match self.rng.integers(16):
            case 0:
                self.configure()
            case 1:
                offset = int(self.rng.integers(TARGET_AT, ARENA_BYTES - 64))
                setup, operand = address(self.rng, ARENA + offset)
                if not self.floats:
                    self.step(f"{setup}sttilecfg {operand}", REPORT, offset=offset)
            case 2 if any(self.rows):
                tile = int(self.rng.choice([t for t in range(8) if self.rows[t]]))
                self.step(f"tilezero %tmm{tile}", ZERO, tile)
            case 3 if self.rng.random() < 0.2:
                self.step("tilerelease", RELEASE)
                self.rows, self.row_bytes, self.start_row = [0] * 8, [0] * 8, 0
            case 4 | 5 | 6:
                self.transfer("tilestored", STORE, TARGET_AT, ARENA_BYTES)
            case 7 | 8:
                self.transfer("tileloadd", LOAD, TARGET_AT, ARENA_BYTES)
            case 9 | 10:
                self.transfer("tileloaddt1", LOAD, SOURCE_AT, TARGET_AT)
            case 11:
                self.transfer("tileloadd", LOAD, SOURCE_AT, TARGET_AT)
            case _:
                self.multiply()

    def memory(self) -> Bytes:
        """-> the arena beforehand."""
        memory = self.rng.integers(0, 256, ARENA_BYTES, dtype=np.uint8)
        memory[:SOURCE_AT] = np.concatenate(self.configs)
        if self.floats:  # products near 1, around the least normal number, or around the greatest
            middle = int(self.rng.choice([127, 60, 66, 186, 192]))
            set_exponents(self.rng, memory[SOURCE_AT:TARGET_AT].view(np.uint16), 7, middle)
            set_exponents(self.rng, memory[TARGET_AT:].view(np.uint32), 23, 2 * middle - 127)
        return memory


def set_exponents(
    rng: np.random.Generator, words: NDArray[np.unsignedinteger], mantissa_bits: int, middle: int
) -> None:
    """Random words -> floats of similar size, in place, and a few of every special kind."""
    exponents = (middle + rng.normal(0, 4, words.size)).astype(int).clip(0, 254)
    exponents[rng.random(words.size) < 0.05] = 0
    exponents[rng.random(words.size) < 0.0003] = 255
    words &= words.dtype.type(~(255 << mantissa_bits) & (1 << mantissa_bits + 9) - 1)
    words |= exponents.astype(words.dtype) << words.dtype.type(mantissa_bits)


def tiles(seed: int, programs: int = 20, length: int = 60) -> None:
    """Random tile programs, each checked on all memory it may write; raises AssertionError.

    Integers and bytes must be equal; bf16 sums must be equal, or both NaN (of any payload).
    """
    rng = np.random.default_rng(seed)
    made = [Program(rng, floats=bool(i % 2)) for i in range(programs)]
    for program in made:
        for _ in range(length):
            program.grow()
    load()
    library = assemble([enter() + "\n".join(p.text) + "\ntilerelease\n" + leave() for p in made])
    for i, program in enumerate(made):
        expected, got = program.memory(), arena()
        got[:] = expected
        getattr(library, f"f{i}")()
        steps = np.array(program.steps, np.int64)
        reference().run_tiles(pointer(steps), ctypes.c_long(len(steps)), pointer(expected))
        wrong = expected.view(np.uint32) != got.view(np.uint32)
        if program.floats:
            both_nan = np.isnan(expected.view(np.float32)) & np.isnan(got.view(np.float32))
            wrong[TARGET_AT // 4 :] &= ~both_nan[TARGET_AT // 4 :]
        where = np.flatnonzero(wrong)
        assert not where.size, (
            f"seed {seed}, program {i}, words {where[:8]}: {got.view(np.uint32)[where[:8]]}"
        )
