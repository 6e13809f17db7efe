"""How an executor runs: the keywords of `qcompiler.Executor`, and flags of `bench` and `serve`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from qcompiler.errors import Error
from qcompiler.options import check, option

if TYPE_CHECKING:
    from collections.abc import Sequence

    from qcompiler.runtime.executor.pool import Pool

HINTS = ("latency", "throughput")


@dataclass(frozen=True)
class Executing:
    """The options of an executor. Raises Error for an invalid value."""

    hint: str = option(
        "latency",
        "what matters: one answer soon, or many of them; a short measurement then chooses how many"
        " streams there are and the threads of each, and is remembered beside the artifact",
        choices=HINTS,
    )
    streams: int = option(0, "requests that run at once; 0: as the hint says")
    threads: int = option(0, "threads of each stream; 0: as the hint says")
    pipeline: int = option(
        0,
        "cut the steps into so many stages with threads of their own, through which samples pass"
        " in turn; 0: as the hint says, 1: do not",
        metavar="STAGES",
    )
    max_queue_size: int = option(256, "requests that may wait; 0: any number", metavar="N")
    when_full: str = option(
        "wait",
        "what submitting does when as many requests wait as may",
        choices=("wait", "refuse"),
    )
    max_batch: int = option(
        0,
        "gather samples of several requests into one run of an artifact that was compiled for a"
        " batch, fixed or open, N at most; 0: do not",
        metavar="N",
    )
    preferred_batch: Sequence[int] = option(
        (),
        "a batch of so many samples does not wait for more; by default those that an open batch is"
        " computed by",
        metavar="N",
        least=1,
        read=int,
    )
    max_queue_delay_us: int = option(
        0, "microseconds that a request may wait for others to fill its batch", metavar="US"
    )
    isolation: str = option(
        "threads",
        "where requests run: in threads of this process, or in processes, whose end is no harm",
        choices=("threads", "processes"),
    )
    run_timeout_ms: int = option(
        300_000,
        "milliseconds that one run may take in a process or in a cluster before its worker is"
        " ended, because it hangs, and replaced; 0: any time",
        metavar="MS",
    )
    engine: str = option(
        "",
        "where streams run: ray is a Ray cluster (the extra [ray]), by default one on each of its"
        " cores; empty: this machine",
        choices=("ray",),
    )
    spin_us: int = option(
        300,
        "microseconds that threads of a stream look for work before they sleep; none where there"
        " are fewer cores than threads",
        metavar="US",
    )
    variant: str = option("", "run this variant; empty: the best for the CPU", metavar="ISA")
    device: str = option(
        "",
        "where to run: the CPU, or a GPU, whose streams have memory of their own and one thread"
        " each; empty: the CPU, or GPU 0 if the artifact is for GPUs alone",
        metavar="cpu|cuda[:N]",
    )
    remember: bool = option(True, "keep beside the artifact what was measured", flags=())
    pool: Pool | None = option(
        None, "who says how many threads run at once; None: the process's own", flags=()
    )

    def __post_init__(self) -> None:
        check(self)
        if any(n < 1 for n in self.preferred_batch):
            raise Error(f"{min(self.preferred_batch)} preferred batch", hint="at least 1")
