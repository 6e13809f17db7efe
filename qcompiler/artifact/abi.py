"""What machine code and its callers agree on: the table of a run, the memory of a thread team,
alignments, and how far past the end kernels read.

    int qcompiler_run(table)                        all of it, by the calling thread
    int qcompiler_launch(team, table, threads)      the same, by a thread team
    int qcompiler_work(team, thread)                a worker of the team: returns when that ends

`table` is an array of 8-byte words (`Table`), whatever the size of an address. `team` is aligned to
ALIGN bytes, zeros at first, and serves one run at a time (`team_bytes`, TEAM).

Code exported to C fills the table itself, from two structs of addresses, and returns a status:

    int NAME_run(const struct NAME_inputs *, const struct NAME_outputs *, void *workspace)    STATUS
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

ALIGN = 64
"""All arrays, weights and the workspace begin at multiples of this many bytes."""

GUARD = 64
"""Bytes that kernels may read past the end of a constant or of a workspace buffer."""

SPINS_PER_US = 20
"""About how many times per microsecond a waiting thread looks for a unit."""

MOST_UNITS = 32
"""Most units of a section and threads of a team: the bits of half a word."""

REFUSED, GRANTED = 1, 2
"""`Table.permission` after a run of code that needs registers which the system grants on request:
the system refused, and nothing was run; or it granted them, and later runs with this table need not
ask.
"""

TEAM: Mapping[str, int] = {
    "REMAINING": 64,
    "SLEEPERS": 128,
    "LAUNCHES": 132,
    "USELESS": 136,
    "POSTED": 140,
    "HELPED": 144,
    "MAY": 148,
    "END": 152,
    "SPINS": 156,
    "JOB": 192,
    "BASE": 228,
    "THREADS": 232,
    "PLACES": 256,
    "PLACE_BYTES": 64,
    "SEMAPHORE": 16,
}
"""Offsets in a team's memory, in bytes:

0: i64, the section's number << 32 | its unclaimed units, one bit each. REMAINING: i32, number of
its unfinished units. SLEEPERS to MAY: i32 each, how many threads sleep, and whether to wake them.
END: i32, whether the workers are to return. SPINS: i32, how often a thread looks for a unit before
it falls asleep. JOB: the addresses of section function, masks and table, 8 bytes each whatever the
size of an address, i32 first, i32 length, i32 total, i32 BASE, i32 THREADS. From PLACES on,
PLACE_BYTES for every thread: i32 asleep, and at SEMAPHORE a POSIX semaphore.
"""


def team_bytes(threads: int) -> int:
    """Size of a team's memory."""
    return TEAM["PLACES"] + threads * TEAM["PLACE_BYTES"]


@dataclass(frozen=True)
class Table:
    """The words of a table: the addresses of the inputs, then of the outputs, `arrays` in all; of
    the weights and the workspace; the first step to run and the one after the last (a run has all
    steps, timing has one; with none the code only requests registers); permission, 0 at first, then
    REFUSED or GRANTED if the code must request registers; and, where the batch is open, how often
    the steps run, each time for the next samples.
    """

    arrays: int

    @property
    def weights(self) -> int:
        """Index of the weights' address."""
        return self.arrays

    @property
    def workspace(self) -> int:
        """Index of the workspace's address."""
        return self.arrays + 1

    @property
    def first(self) -> int:
        """Index of the first step."""
        return self.arrays + 2

    @property
    def last(self) -> int:
        """Index of the step after the last."""
        return self.arrays + 3

    @property
    def permission(self) -> int:
        """Index of the system's answer to a request for registers."""
        return self.arrays + 4

    @property
    def parts(self) -> int:
        """Index of the number of parts of an open batch."""
        return self.arrays + 5

    @property
    def words(self) -> int:
        """Number of words."""
        return self.arrays + 6
