"""A program for a GPU -> its kernels, as `inspect --plan` tells them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from qcompiler.artifact.artifact import Variant
from qcompiler.artifact.program import Program, for_gpu
from qcompiler.cli import show

_HEAD = ("step", "kernel", "grid", "registers", "shared", "spilled", "occupancy", "us", "bound")


def is_gpu(variant: Variant) -> bool:
    """Is a variant's code for a GPU?"""
    return for_gpu(variant.triple)


def text(program: Program, steps: Sequence[str]) -> str:
    """A table of launches in order: what each takes of a multiprocessor, and what its step is
    predicted to take; then the sum.
    """
    rows, last = [], -1
    for launch in program.launches:
        use, forecast = program.uses[launch.function], program.forecasts[launch.step]
        blocks = "x".join(str(n) for n in launch.blocks)
        rows.append(
            (
                steps[launch.step],
                launch.function,
                f"{blocks} of {launch.threads}",
                use.registers or "-",
                use.shared_bytes,
                use.frame_bytes,
                f"{use.occupancy:.0%}",
                "" if launch.step == last else f"{1e6 * forecast.seconds:.1f}",
                "" if launch.step == last else forecast.bound,
            )
        )
        last = launch.step
    seconds = sum(f.seconds for f in program.forecasts)
    told = f"{show.table(_HEAD, rows)}\npredicted: {1e6 * seconds:.1f} us a run"
    texts = [n.removeprefix("compute_") for n in program.modules if n.startswith("compute_")]
    return told + "".join(f"\nGPUs later than sm_{n}: their driver compiles it" for n in texts)


def as_json(program: Program, steps: Sequence[str]) -> list[dict[str, object]]:
    """The same for programs: a dictionary for each launch."""
    return list(_rows(program, steps))


def _rows(program: Program, steps: Sequence[str]) -> Iterator[dict[str, object]]:
    told = -1
    for launch in program.launches:
        use, forecast = program.uses[launch.function], program.forecasts[launch.step]
        first, told = launch.step != told, launch.step
        yield {
            "step": steps[launch.step],
            "kernel": launch.function,
            "blocks": list(launch.blocks),
            "threads": launch.threads,
            "registers": use.registers,
            "shared_bytes": use.shared_bytes,
            "spilled_bytes": use.frame_bytes,
            "occupancy": use.occupancy,
            **({"seconds": forecast.seconds, "bound": forecast.bound} if first else {}),
        }
