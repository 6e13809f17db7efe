"""Outputs over evaluation data -> one score in points, at most 100.

With labels a score measures accuracy; without, agreement with the float model.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qcompiler.data.samples import Sample
from qcompiler.errors import Error
from qcompiler.files import opened
from qcompiler.ir import Array
from qcompiler.plugins import broken, load_file
from qcompiler.runtime import Model

Outputs = Mapping[str, Array]
"""{output name: [samples, ...]}, the outputs of all samples, concatenated."""
Score = Callable[[Outputs, Outputs, "Array | None"], float]
"""(outputs, the float model's outputs, labels) -> points."""


def top1(outputs: Outputs, reference: Outputs, labels: Array | None) -> float:
    """Per cent of rows of the first output whose largest class is the label.

    Classes are the last axis of [N, C], axis 1 of [N, C, ...].
    """
    return 100 * float(np.mean(classes(outputs) == _labels(labels, outputs)))


def top5(outputs: Outputs, reference: Outputs, labels: Array | None) -> float:
    """Per cent of rows of the first output, [N, C], whose label is among the five largest."""
    return 100 * float(_in_five(outputs, labels).mean())


def agreement(outputs: Outputs, reference: Outputs, labels: Array | None) -> float:
    """Per cent of rows of the first output with the same largest class as the float model."""
    return 100 * float(np.mean(classes(outputs) == classes(reference)))


def cosine(outputs: Outputs, reference: Outputs, labels: Array | None) -> float:
    """100 x the cosine similarity with the float model's output, averaged over samples; the lowest
    of all outputs.
    """
    return min(_cosine(outputs[name], reference[name]) for name in reference)


METRICS: dict[str, Score] = {f.__name__: f for f in (top1, top5, agreement, cosine)}


def metric(name: str, labelled: bool, reference: Outputs) -> tuple[str, Score]:
    """A metric's name, or "FILE.py:function", or "" -> (its name, the function).

    The default is top1 if there are labels; otherwise agreement if the first output is [N, C] with
    at least three classes, else cosine.
    """
    if ":" in name:
        return name, _of_file(name)
    if not name:
        first = next(iter(reference.values()))
        scores = first.ndim == 2 and first.shape[1] >= 3
        name = "top1" if labelled else "agreement" if scores else "cosine"
    if name not in METRICS:
        known = ", ".join(METRICS)
        raise Error(f"unknown metric {name!r}", hint=f"{known}, or FILE.py:function")
    if name in ("top1", "top5") and not labelled:
        raise Error(f"{name} needs labels", hint="--labels labels.npy, or --metric agreement")
    return name, METRICS[name]


def outputs_of(model: Model, data: Iterable[Sample]) -> Outputs:
    """The outputs of all samples, concatenated; a scalar counts as one row."""
    made: dict[str, list[Array]] = {v.name: [] for v in model.outputs}
    for sample in data:
        for name, array in model.run(sample).items():
            made[name].append(np.atleast_1d(array))
    whole = {name: np.concatenate(arrays) for name, arrays in made.items()}
    for array in whole.values():
        array.flags.writeable = False  # a user's metric may only read it
    return whole


def labels_of(given: object, count: int, rows: int) -> Array | None:
    """The given labels, enough for all samples -> [samples, rows per sample, ...]."""
    if given is None:
        return None
    where = "labels"
    if isinstance(given, (str, Path)):
        where = str(given)
        try:
            with opened(given) as file:
                loaded = np.load(file, allow_pickle=False)
                if isinstance(loaded, np.lib.npyio.NpzFile):
                    loaded = loaded["labels" if "labels" in loaded.files else loaded.files[0]]
                given = loaded
        except (OSError, ValueError, EOFError, IndexError, zipfile.BadZipFile) as e:
            raise Error(f"no labels: {e}", where=where) from e
    labels = np.asarray(given)
    if not labels.ndim or len(labels) < rows * count:
        raise Error(
            f"labels of shape {list(labels.shape)} for {count} samples of {rows}", where=where
        )
    return labels[: rows * count].reshape(count, rows, *labels.shape[1:])


def classes(outputs: Outputs) -> Array:
    """The largest class of every row of the first output."""
    first = next(iter(outputs.values()))
    found: Array = first.argmax(axis=-1 if first.ndim <= 2 else 1)
    return found


def loss(outputs: Outputs, reference: Outputs) -> float:
    """The squared error over the reference's energy, summed over outputs: smoother than a score."""
    total = 0.0
    for name, exact in reference.items():
        a, b = (x.astype(np.float64) for x in (outputs[name], exact))
        total += float(np.square(a - b).sum()) / (float(np.square(b).sum()) or 1.0)
    return total


def divergence(outputs: Outputs, reference: Outputs) -> float:
    """The distance from the float model's outputs, summed over outputs. It changes with every
    rounding error, whereas a score changes only when a class does.

    For class scores, [N, C] with at least three classes, this is the mean Kullback-Leibler
    divergence of their softmax (of the scores themselves, if they are probabilities); for all other
    outputs, the relative squared error.
    """
    total = 0.0
    for name, exact in reference.items():
        if exact.ndim == 2 and exact.shape[1] >= 3:
            p, q = _log_probabilities(exact, exact), _log_probabilities(outputs[name], exact)
            total += float(np.mean(np.sum(np.exp(p) * (p - q), axis=1)))
        else:
            total += loss({name: outputs[name]}, {name: exact})
    return total


def _log_probabilities(scores: Array, exact: Array) -> NDArray[np.float64]:
    """Scores, or probabilities if the float model returns those, [N, C] -> log-probabilities."""
    x = scores.astype(np.float64)
    if exact.min() >= 0 and np.allclose(exact.sum(axis=1), 1, atol=1e-3):
        x = np.log(np.maximum(x, 1e-9))
    x = x - x.max(axis=1, keepdims=True)
    made: NDArray[np.float64] = x - np.log(np.exp(x).sum(axis=1, keepdims=True))
    return made


def right(metric: str, outputs: Outputs, reference: Outputs, labels: Array | None) -> Array | None:
    """Which rows are right, [rows] of bool, for metrics that count right rows; else None."""
    if metric == "agreement":
        return np.asarray(classes(outputs) == classes(reference)).reshape(-1)
    if metric == "top1":
        return np.asarray(classes(outputs) == _labels(labels, outputs)).reshape(-1)
    return _in_five(outputs, labels) if metric == "top5" else None


def _in_five(outputs: Outputs, labels: Array | None) -> Array:
    """Which rows have their label among the five largest."""
    first = next(iter(outputs.values()))
    wanted = _labels(labels, outputs)
    best = np.argsort(first.reshape(len(first), -1), axis=1)[:, -5:]
    found: Array = (best == wanted.reshape(-1, 1)).any(axis=1)
    return found


@dataclass(frozen=True)
class Verdict:
    """Whether a loss is within its limit, and why there may be too few rows to tell."""

    passed: bool
    unsure: str = ""


def paired(before: Array, after: Array, drop: float) -> Verdict:
    """Which rows were right before and after, [rows] each -> are at most `drop` points lost?

    Yes, if the net loss is within the limit; or if it exceeds the limit by no more than one row or
    a quarter of the limit, and chance can explain that: among the rows that changed, the number of
    lost ones is binomial (McNemar's exact test, shifted by the limit), one-sided at 5 %.
    """
    rows = len(before)
    lost, won = int(np.greater(before, after).sum()), int(np.greater(after, before).sum())
    allowed = drop * rows / 100
    net, changed = lost - won, lost + won
    interval = 1.645 * math.sqrt(max(changed, 1)) * 100 / rows
    unsure = ""
    if interval > drop:
        needed = math.ceil(changed / rows * (164.5 / drop) ** 2) if drop else 0
        more = f"; about {max(needed, rows + 1)} would" if needed else ""
        unsure = f"{rows} rows tell losses apart to {interval:.2g} points{more}"
    if net <= allowed:
        return Verdict(True, unsure)
    share = 0.5 + min(allowed / (2 * changed), 0.5)
    chance = sum(_binomial(changed, k, share) for k in range(lost, changed + 1))
    return Verdict(bool(drop and net - allowed <= max(1.0, allowed / 4) and chance > 0.05), unsure)


def _binomial(count: int, k: int, share: float) -> float:
    """The probability of k out of `count`, by logarithms, for counts of any size."""
    if share >= 1:
        return float(k == count)
    ways = math.lgamma(count + 1) - math.lgamma(k + 1) - math.lgamma(count - k + 1)
    return math.exp(ways + k * math.log(share) + (count - k) * math.log1p(-share))


def _labels(labels: Array | None, outputs: Outputs) -> Array:
    assert labels is not None  # `metric` refuses None
    wanted = classes(outputs).shape
    if labels.size != np.prod(wanted):
        raise Error(f"labels of shape {list(labels.shape)} for outputs of {list(wanted)} classes")
    if labels.dtype.kind not in "biuf" or not np.array_equal(labels, np.trunc(labels)):
        raise Error(f"labels of {labels.dtype} are no classes", hint="whole numbers from 0 are")
    return labels.reshape(wanted)


def _cosine(a: Array, b: Array) -> float:
    x, y = (v.reshape(len(v), -1).astype(np.float64) for v in (a, b))
    lengths = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
    dots = (x * y).sum(axis=1)
    same = (x == y).all(axis=1).astype(np.float64)  # zero vectors have no angle
    return 100 * float(np.mean(np.divide(dots, lengths, out=same, where=lengths > 0)))


def _of_file(word: str) -> Score:
    path, _, name = word.rpartition(":")
    found = getattr(load_file(Path(path)), name, None)
    if not callable(found):
        raise Error(f"no function {name!r}", where=path)

    def score(outputs: Outputs, reference: Outputs, labels: Array | None) -> float:
        try:
            return float(found(outputs, reference, labels))
        except Error:
            raise
        except (Exception, SystemExit) as e:
            raise broken(e, word) from e

    return score
