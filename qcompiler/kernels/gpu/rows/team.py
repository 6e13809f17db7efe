"""Lines of elements -> a team of threads for each, and numbers that a team joins.

A team is a warp or several; a block holds some teams. Element e of a line belongs to thread
e % team, so that neighbours are read together. Where neighbours in memory belong to different
lines, a team is a single thread, and neighbouring threads read together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from tvm import tirx

from qcompiler.hardware.gpu import WARP
from qcompiler.kernels.cpu.code import tir
from qcompiler.kernels.cpu.code.epilogue import Fused
from qcompiler.kernels.cpu.code.tir import Value
from qcompiler.kernels.cpu.code.vec import Vec
from qcompiler.kernels.gpu.code.device import across
from qcompiler.kernels.gpu.code.draft import GridDraft
from qcompiler.kernels.gpu.rows.lines import Lines

LONGEST = 16384
"""Elements of the longest line that a team holds: 16 registers of each of 1024 threads."""
_EACH = 8
"""Elements of a thread from which a line gets more threads."""
_BLOCK = 128
_MANY = 4096
"""Lines that keep a GPU busy with a thread for each."""
_SHORT = 64
"""Elements that one thread may go through."""

Join = Callable[[Vec, Vec], Vec]


def team_of(lines: Lines) -> int:
    """Threads for a line."""
    if lines.beside and (lines.count >= _MANY or lines.length <= _SHORT):
        return 1
    team = WARP
    while team * _EACH < lines.length and team < 1024:
        team *= 2
    return team


def threads_of(lines: Lines) -> int:
    """Threads of a block for lines."""
    return max(team_of(lines), _BLOCK)


class Team:
    """The threads of one line, while their code is written; see `each_line`."""

    def __init__(self, d: GridDraft, lines: Lines) -> None:
        """`d` has `threads_of(lines)` threads."""
        self.d, self.b, self.m = d, d.b, d.m
        self.lines, self.length, self.size = lines, lines.length, team_of(lines)
        teams = self.b.threads // self.size
        self.b.blocks(-(-lines.count // teams))
        self.lane = self.b.let(tirx.floormod(self.b.thread, self.size), "lane")
        self.number = self.b.let(tirx.floordiv(self.b.thread, self.size), "team")
        asked = self.b.let(self.b.x * teams + self.number, "asked")
        self.whole = lines.count % teams == 0
        last = tir.const(lines.count - 1)
        self.line = asked if self.whole else self.b.let(tirx.Min(asked, last), "line")
        self.inside = asked < lines.count
        self.start = lines.start(self.b, self.line)
        self.each = -(-self.length // self.size)
        """Elements of a thread, the last of which may be behind the line's end."""

    @property
    def warps(self) -> int:
        """Of a team; 0 if it is one thread."""
        return self.size // WARP

    def there(self) -> AbstractContextManager[None]:
        """Statements for lines that exist: the last block may have fewer."""
        return nullcontext() if self.whole else self.b.when(self.inside)

    def element(self, i: Value) -> Value:
        """The number of a thread's element i in the line."""
        return self.b.let(self.lane + i * self.size, "element")

    def within(self, i: int, element: Value) -> AbstractContextManager[None]:
        """Statements for a thread's element i, if the line has it."""
        if (i + 1) * self.size <= self.length:
            return nullcontext()
        return self.b.when(element < self.length)

    @contextmanager
    def elements(self) -> Iterator[Value]:
        """The thread's elements, one after the other."""
        with self.b.serial(self.each, "turn") as turn:
            element = self.element(turn)
            whole = self.length % self.size == 0
            with nullcontext() if whole else self.b.when(element < self.length):
                yield element

    def values(self, dtype: str, f: Fused, beyond: float) -> list[Vec]:
        """The thread's elements, by way of the prologue, in a dtype; `beyond` where the line ends
        before.
        """
        held = self.b.registers(tir.stored(dtype), 1, self.each, "held")
        for i in range(self.each):
            element = self.element(i)
            if (i + 1) * self.size > self.length:
                held[i] = self.m.splat(beyond, dtype).expr
            with self.within(i, element):
                held[i] = self.m.cast(self.at(f, element), dtype).expr
        return [Vec(self.m, held[i], dtype, 1) for i in range(self.each)]

    def only(self, i: int, value: Vec, beyond: float) -> Vec:
        """A value of the thread's element i; `beyond` where the line ends before."""
        if (i + 1) * self.size <= self.length:
            return value
        return self.m.where(self.m.vec(self.element(i) < self.length), value, beyond)

    def place(self, element: Value) -> Value:
        """Where an element of the line lies in the tensor."""
        return self.b.let(self.start + self.lines.offset(self.b, element), "flat")

    def at(self, f: Fused, element: Value, given: Vec | None = None) -> Vec:
        """The value of `f` at an element of the team's line; `given`: the root's there."""
        known = {} if given is None else {self.d.root: given}
        if f.columns == self.length and self.lines.in_order:
            return f.at(f.row(self.line), element, 1, 1, known)
        return self.d.at(f, self.place(element), known)

    def joined(self, own: Vec, join: Join) -> Vec:
        """A number of each thread -> that of the team, the same in all its threads."""
        if self.size == 1:
            return own
        distance = WARP // 2
        while distance:
            own, distance = join(own, self.other(own, distance)), distance // 2
        if self.warps == 1:
            return own
        total, *others = self.of_warps(own)
        for value in others:
            total = join(total, value)
        return total

    def other(self, own: Vec, distance: int) -> Vec:
        """The same number of the thread that is so far away in the warp."""
        found = across("shuffle_xor", own.expr, tir.const(distance))
        return self.m.vec(found, own.dtype)

    def of_warps(self, own: Vec) -> list[Vec]:
        """What the first thread of each of the team's warps has, in order."""
        b = self.b
        partial = b.shared(tir.stored(own.dtype), b.threads // WARP, "partial")
        with b.when(tirx.EQ(tirx.floormod(b.thread, WARP), 0)):
            partial.store(b.let(tirx.floordiv(b.thread, WARP)), own.expr)
        b.barrier()
        first = b.let(self.number * self.warps, "first")
        return [self.m.vec(partial.load(first + i), own.dtype) for i in range(self.warps)]

    def give(self, f: Fused, element: Value, value: Vec) -> None:
        """Store the root's value at an element of the line, by way of the epilogue."""
        made = self.m.cast(value, self.d.root.dtype)
        self.d.store(self.place(element), [self.at(f, element, made)])

    def put(self, value: Vec) -> None:
        """Store the root's value for the whole line, whose number is that of the output."""
        first = tirx.EQ(self.lane, 0)
        with self.b.when(first if self.whole else tirx.And(first, self.inside)):
            self.d.put_at(self.line, self.m.cast(value, self.d.root.dtype))
