"""What machine code and whoever calls it agree on: the table of a run, the memory of a thread team,
alignments, and how far kernels read.

    int qcompiler_run(table)                        all of it, by the calling thread
    int qcompiler_launch(team, table, threads)      the same, by a thread team
    int qcompiler_work(team, thread)                a worker of the team: never returns

`table` is an array of 8-byte words (`Table`), whatever the size of an address. `team` is aligned to
ALIGN bytes, zeros at first, and serves one run at a time (`team_bytes`, TEAM).

What is exported to C fills the table itself, from two structs of addresses, and says how it went:

    int NAME_run(const struct NAME_inputs *, const struct NAME_outputs *, void *workspace)    STATUS
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

ALIGN = 64
"""All arrays, weights and the workspace begin at multiples of it."""

GUARD = 64
"""Kernels may read this far past the end of a constant or of a workspace buffer."""

MOST_UNITS = 32
"""Units of a section, and threads of a team: bits of half a word."""

REFUSED, GRANTED = 1, 2
"""What `Table.permission` is set to where the code needs registers that the system gives to who
asks: it does not let the process use them, and nothing was run; or it does, and later runs with
this table need not ask.
"""

STATUS: Mapping[str, tuple[int, str]] = {
    "OK": (0, "the outputs are written"),
    "REFUSED": (REFUSED, "the system refuses registers that the code needs; nothing was run"),
    "BAD_POINTER": (2, "an address is null or not aligned; nothing was run"),
    "OTHER_WEIGHTS": (3, "the weights are not this model's; nothing was run"),
}
"""What `NAME_run` returns, and what that means."""

SEAL_BYTES = 64
"""Weights in a file of their own end in so many bytes more, which begin with `seal`."""


def seal(digest: str) -> int:
    """SHA-256 of the weights -> the 8-byte word that their file ends in."""
    return int(digest[:16], 16)


TEAM: Mapping[str, int] = {
    "REMAINING": 64,
    "SLEEPERS": 128,
    "LAUNCHES": 132,
    "USELESS": 136,
    "POSTED": 140,
    "HELPED": 144,
    "MAY": 148,
    "JOB": 192,
    "BASE": 228,
    "THREADS": 232,
    "PLACES": 256,
    "PLACE_BYTES": 64,
    "SEMAPHORE": 16,
}
"""Offsets in a team's memory, in bytes:

0: i64, the section's number << 32 | its units that nobody has claimed, one bit each. REMAINING:
i32, its units that are not finished. SLEEPERS to MAY: i32 each, how many sleep, and whether to wake
them. JOB: the addresses of section function, masks and table, 8 bytes each however long they are,
i32 first, i32 length, i32 total, i32 BASE, i32 THREADS. From PLACES on, PLACE_BYTES for every
thread: i32 asleep, and at SEMAPHORE a POSIX semaphore.
"""


def team_bytes(threads: int) -> int:
    """The memory of a team."""
    return TEAM["PLACES"] + threads * TEAM["PLACE_BYTES"]


@dataclass(frozen=True)
class Table:
    """Which word is what: first the addresses of the inputs, then of the outputs, `arrays` in all;
    of the weights and the workspace; the first step to run and the one after the last (all of them
    in one run; one alone when a step is timed; none: only what comes before a run); 0 at first,
    then REFUSED or GRANTED where the code has to ask for registers.
    """

    arrays: int

    @property
    def weights(self) -> int:
        """The address of the weights."""
        return self.arrays

    @property
    def workspace(self) -> int:
        """The address of the workspace."""
        return self.arrays + 1

    @property
    def first(self) -> int:
        """The first step."""
        return self.arrays + 2

    @property
    def last(self) -> int:
        """The step after the last."""
        return self.arrays + 3

    @property
    def permission(self) -> int:
        """What the system said to who asked for registers."""
        return self.arrays + 4

    @property
    def words(self) -> int:
        """How many there are."""
        return self.arrays + 5
