"""Two sets of outputs, or an artifact and onnxruntime on the same inputs -> the differences, and
both latencies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from qcompiler.errors import Error
from qcompiler.ir import Array
from qcompiler.runtime.remote import RemoteModel
from qcompiler.tune.timing import medians

if TYPE_CHECKING:
    from qcompiler.runtime import Model
    from qcompiler.runtime.cuda import CudaModel

DEVICE_SECONDS = 0.5


@dataclass(frozen=True)
class OutputError:
    """The error of one output against the reference, over all samples.

    `relative_error` is the largest error divided by the reference's range (max - min). `top1` is
    the fraction of rows (all axes but the last) with the same largest element; None for outputs
    with fewer than 2 columns.
    """

    name: str
    max_error: float
    mean_error: float
    relative_error: float
    cosine: float
    top1: float | None


@dataclass(frozen=True)
class Report:
    """Errors of every output; median seconds of the artifact and of its peer."""

    outputs: tuple[OutputError, ...]
    seconds: float
    peer_seconds: float


def errors(name: str, ours: Sequence[Array], reference: Sequence[Array]) -> OutputError:
    """One output's arrays over all samples, ours and the reference's, of any shapes -> the error
    between them.
    """
    sides = [[np.asarray(x, np.float64) for x in side] for side in (ours, reference)]
    a, b = (np.concatenate([x.reshape(-1) for x in side]) for side in sides)
    with np.errstate(invalid="ignore"):  # infinity - infinity, if both are infinite
        difference = np.where((a == b) | (np.isnan(a) & np.isnan(b)), 0.0, np.abs(a - b))
    finite = b[np.isfinite(b)]
    spread = float(np.ptp(finite)) if finite.size else 0.0
    norm = float(np.linalg.norm(a)) * float(np.linalg.norm(b))
    top1 = None
    if all(x.ndim and x.shape[-1] > 1 for x in sides[1]):
        hits = [(x.argmax(-1) == y.argmax(-1)).reshape(-1) for x, y in zip(*sides, strict=True)]
        top1 = float(np.mean(np.concatenate(hits)))
    worst = float(difference.max(initial=0.0))
    return OutputError(
        name=name,
        max_error=worst,
        mean_error=float(difference.mean()) if b.size else 0.0,
        relative_error=worst / spread if spread else worst,
        cosine=float(np.vdot(a, b)) / norm if norm else float(np.array_equal(a, b)),
        top1=top1,
    )


def against_onnxruntime(
    model: Model | CudaModel | RemoteModel, onnx_file: Path, samples: Sequence[Mapping[str, Array]]
) -> Report:
    """Artifact, its ONNX file, inputs -> report; both get the same number of threads, on one
    machine unless the artifact is on a device.
    """
    peer = _Peer(onnx_file, model.threads, exact=True)
    names = peer.names
    if names != [v.name for v in model.outputs]:
        raise Error(
            f"its outputs are {', '.join(names)}",
            where=str(onnx_file),
            hint="is it the same model?",
        )
    ours = [model.run(s) for s in samples]
    theirs = [dict(zip(names, peer.run(s), strict=True)) for s in samples]
    for our, their in zip(ours, theirs, strict=True):
        for name in names:
            if our[name].shape != their[name].shape:
                what = f"shapes {our[name].shape} and {their[name].shape}"
                raise Error(what, where=f"output {name!r}")
    found = [errors(n, [o[n] for o in ours], [t[n] for t in theirs]) for n in names]
    first = dict(samples[0])
    del peer  # two sessions of a large model might not fit
    peer = _Peer(onnx_file, model.threads)
    if isinstance(model, RemoteModel):
        seconds = float(np.median(model.measure(first, seconds=DEVICE_SECONDS).times))
        (peer_seconds,) = medians(lambda: peer.run(first))
    else:
        seconds, peer_seconds = medians(lambda: model.run(first), lambda: peer.run(first))
    return Report(tuple(found), seconds, peer_seconds)


class _Peer:
    """An ONNX file in onnxruntime; its exceptions, of many types, become Errors.

    exact: no sum of two byte products saturates, as in its fastest code for CPUs that cannot add
    four of them exactly.
    """

    def __init__(self, onnx_file: Path, threads: int, *, exact: bool = False) -> None:
        try:
            import onnxruntime
        except ImportError as e:
            raise Error("onnxruntime is not installed", hint="pip install onnxruntime") from e
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 4  # errors are raised as well
        options.add_session_config_entry("session.x64quantprecision", "1" if exact else "0")
        self.where = str(onnx_file)
        try:
            self.session = onnxruntime.InferenceSession(
                self.where, options, providers=["CPUExecutionProvider"]
            )
        except Exception as e:
            raise Error(f"onnxruntime cannot load it: {_first(e)}", where=self.where) from e
        self.names = [o.name for o in self.session.get_outputs()]

    def run(self, sample: Mapping[str, Array]) -> list[Array]:
        """One sample -> the outputs, in order."""
        try:
            outputs: list[Array] = self.session.run(None, dict(sample))
        except Exception as e:
            raise Error(f"onnxruntime cannot run it: {_first(e)}", where=self.where) from e
        return outputs


def _first(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def beyond(
    report: Report,
    *,
    atol: float | None = None,
    rtol: float | None = None,
    cosine: float | None = None,
    top1: float | None = None,
) -> list[str]:
    """Report and limits (None: no limit) -> a sentence for every limit that is exceeded."""
    failures = []
    for o in report.outputs:
        if atol is not None and not o.max_error <= atol:
            failures.append(f"{o.name}: error {o.max_error:.3g} > {atol:g}")
        if rtol is not None and not o.relative_error <= rtol:
            failures.append(f"{o.name}: error / range {o.relative_error:.3g} > {rtol:g}")
        if cosine is not None and not o.cosine >= cosine:
            failures.append(f"{o.name}: cosine {o.cosine:.6f} < {cosine:g}")
        if top1 is not None and o.top1 is not None and not o.top1 >= top1:
            failures.append(f"{o.name}: top-1 agreement {o.top1:.3f} < {top1:g}")
    return failures
