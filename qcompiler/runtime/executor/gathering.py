"""What an artifact says of its batch, and what is asked for -> how requests are gathered."""

from __future__ import annotations

from collections.abc import Container

from qcompiler.artifact.artifact import Manifest, Variant
from qcompiler.errors import Error
from qcompiler.runtime.executor.options import Executing
from qcompiler.runtime.executor.streams import Gather
from qcompiler.runtime.model import input_specs

_NO_BATCH = (
    "compile it for the largest batch with --input-shape or an open one with --dim, or leave out"
    " max_batch"
)


def most_samples(manifest: Manifest, asked: int) -> int:
    """Of one run; 0: requests are not gathered. Raises Error where they cannot be."""
    if not asked:
        return 0
    sizes = {v.dims[0] if v.dims else 0 for v in (*manifest.inputs, *manifest.outputs)}
    if len(sizes) > 1 or 0 in sizes:
        raise Error("the model's inputs and outputs have no batch in common", hint=_NO_BATCH)
    if sizes == {1}:
        raise Error("the artifact was compiled for a batch of 1", hint=_NO_BATCH)
    if not manifest.apart:
        raise Error(
            "it is not known of the model that it treats every sample by itself, so requests cannot"
            " be gathered",
            where=manifest.name,
            hint="run it without max_batch; an artifact of an older version: compile it again",
        )
    if any(isinstance(d, str) for v in (*manifest.inputs, *manifest.outputs) for d in v.dims[1:]):
        raise Error("only samples of one shape are gathered", where=manifest.name, hint=_NO_BATCH)
    (size,) = sizes
    return min(asked, size if isinstance(size, int) else _range(manifest, size)[1])


def gathering(manifest: Manifest, variant: Variant, options: Executing) -> Gather | None:
    """How requests are gathered, if they are."""
    most = most_samples(manifest, options.max_batch)
    if not most:
        return None
    size = manifest.inputs[0].dims[0]
    low, high = (size, size) if isinstance(size, int) else (_range(manifest, size)[0], most)
    shapes = [(dtype, shape[1:]) for _, _, dtype, shape in input_specs(manifest.inputs)]
    rounds = [b.samples for b in variant.batches if 1 < b.samples <= most]
    preferred: Container[int] = options.preferred_batch
    if rounds and not options.preferred_batch:
        preferred = range(rounds[-1], most + 1, rounds[-1])
    return Gather(
        [(dtype, (max(low, high), *shape)) for dtype, shape in shapes],
        most,
        least=low,
        preferred=preferred,
        delay_seconds=options.max_queue_delay_us * 1e-6,
    )


def _range(manifest: Manifest, name: str) -> tuple[int, int]:
    """The least and the largest number of samples of an open batch."""
    for symbol in manifest.symbols:
        if symbol.name == name:
            return symbol.low, symbol.high
    raise Error(f"the batch is {name}, which is not known", where=manifest.name, hint=_NO_BATCH)
