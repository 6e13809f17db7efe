"""A folder of trained models and labelled data -> tasks: what to run, what to calibrate with, how
to score.

Every task is one folder there (`cifar10/`, `detection/`, `imagenet/`, `minilm/`,
`speech_commands/`); those that are absent are left out. Calibration never sees what is scored.
"""

from __future__ import annotations

import runpy
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx

from benchmarks.subjects import Array, Feed


@dataclass(frozen=True)
class Task:
    """Inputs hold one sample a row. `score` takes the first output of all of them, in order."""

    name: str
    model: Callable[[], onnx.ModelProto]
    limit: float
    """How many points int8 may lose."""
    batch: int
    calibration: Feed
    inputs: Feed
    score: Callable[[Array], float]

    def batches(self, columns: Feed, count: int = 0) -> Iterator[Feed]:
        """Rows -> feeds of `batch` samples each, as many as fill one; `count`: no more samples."""
        rows = len(next(iter(columns.values())))
        rows = min(rows, count) if count else rows
        for start in range(0, rows - self.batch + 1, self.batch):
            yield {k: v[start : start + self.batch] for k, v in columns.items()}

    def calibrated_with(self, count: int, seed: int) -> Task:
        """The same task with so many of its calibration samples, drawn by chance."""
        rows = len(next(iter(self.calibration.values())))
        drawn = np.random.default_rng(seed).permutation(rows)[:count]
        return replace(self, calibration={k: v[drawn] for k, v in self.calibration.items()})


def tasks(folder: Path, names: Sequence[str] = ()) -> list[Task]:
    """The tasks whose folder is there; `names` picks some."""
    found = []
    for name, (place, make) in TASKS.items():
        if (folder / place).is_dir() and (not names or name in names):
            found.append(make(folder / place))
    return found


def top1(labels: Array) -> Callable[[Array], float]:
    """Per cent of outputs whose largest number stands at the label."""

    def score(outputs: Array) -> float:
        right = outputs.argmax(axis=-1) == labels[: len(outputs)]
        return float(100 * np.mean(right))

    return score


def _loader(path: Path) -> Callable[[], onnx.ModelProto]:
    return lambda: onnx.load(path)


def _resnet8(folder: Path) -> Task:
    """MLPerf Tiny's image classifier: pixels as they are."""
    return _cifar(folder, "resnet8_cifar10", lambda x: x.astype(np.float32))


def _resnet20(folder: Path) -> Task:
    """A CIFAR ResNet whose shortcuts slice and pad."""
    mean = np.array([0.485, 0.456, 0.406], np.float32).reshape(3, 1, 1)
    spread = np.array([0.229, 0.224, 0.225], np.float32).reshape(3, 1, 1)
    return _cifar(folder, "resnet20_cifar10", lambda x: (x / np.float32(255) - mean) / spread)


def _cifar(folder: Path, name: str, normal: Callable[[Array], Array]) -> Task:
    with np.load(folder / "cifar10.npz") as stored:
        train, test, labels = stored["x_train"], stored["x_test"], stored["y_test"]
    return Task(
        name,
        _loader(folder / f"{name}.onnx"),
        limit=0.3,
        batch=50,
        calibration={"input": normal(train.transpose(0, 3, 1, 2)[:500])},
        inputs={"input": normal(test.transpose(0, 3, 1, 2))},
        score=top1(labels),
    )


def _dscnn(folder: Path) -> Task:
    """MLPerf Tiny's keyword spotter; every sixth dozen of clips, one of each class, calibrates."""
    with np.load(folder / "kws_features.npz") as stored:
        clips, labels = stored["x"], stored["y"]
    held = np.arange(len(clips)) // 12 % 6 == 0
    return Task(
        "dscnn_kws",
        _loader(folder / "dscnn_kws.onnx"),
        limit=0.7,
        batch=50,
        calibration={"mfcc": clips[held]},
        inputs={"mfcc": clips[~held]},
        score=top1(labels[~held]),
    )


def _mobilenetv2(folder: Path) -> Task:
    """1001 classes, of which the first is the background."""
    images, labels = _photos(folder)
    normal = images / np.float32(127.5) - 1
    return _imagenet(folder, "mobilenetv2_1.0_224", normal, labels + 1, limit=0.7)


def _squeezenet(folder: Path) -> Task:
    images, labels = _photos(folder)
    mean = np.array([0.485, 0.456, 0.406], np.float32).reshape(3, 1, 1)
    spread = np.array([0.229, 0.224, 0.225], np.float32).reshape(3, 1, 1)
    normal = (images / np.float32(255) - mean) / spread
    return _imagenet(folder, "squeezenet1.1", normal, labels, limit=1.0)


def _imagenet(folder: Path, name: str, images: Array, labels: Array, *, limit: float) -> Task:
    """Every fifth photo calibrates."""
    held = np.arange(len(images)) % 5 == 0
    return Task(
        name,
        _loader(folder / f"{name}.onnx"),
        limit=limit,
        batch=10,
        calibration={"input": images[held]},
        inputs={"input": images[~held]},
        score=top1(labels[~held]),
    )


def _photos(folder: Path) -> tuple[Array, Array]:
    """`jpg224/NNNN_name.jpg` -> pixels [N,3,224,224] and labels NNNN."""
    from PIL import Image

    files = sorted((folder / "jpg224").glob("*.jpg"))
    pixels = [np.asarray(Image.open(f).convert("RGB")).transpose(2, 0, 1) for f in files]
    return np.stack(pixels), np.array([int(f.name[:4]) for f in files])


def _yolox(folder: Path) -> Task:
    """Objects in eight photos: average precision at half overlap, as the folder's own script has
    it; one of them may be worth 6 points. A fifth of the classified photos calibrates.
    """
    from PIL import Image

    script = runpy.run_path(str(folder / "evaluate.py"), run_name="evaluate")

    def framed(paths: Sequence[Path]) -> Array:
        photos = [script["letterbox"](Image.open(p).convert("RGB"), 416)[0] for p in paths]
        return np.stack(photos).transpose(0, 3, 1, 2)

    def score(outputs: Array) -> float:
        class Replay:
            """What the script takes for a session: it gives the outputs, one at a time."""

            left = iter(outputs[:, None])

            def run(self, names: object, feed: Feed) -> list[Array]:
                return [next(self.left)]

        return 100 * float(script["ap50"](script["yolox"], Replay())[0])

    return Task(
        "yolox_nano",
        _loader(folder / "yolox_nano.onnx"),
        limit=3.0,
        batch=1,
        calibration={
            "images": framed(sorted((folder.parent / "imagenet/jpg224").glob("*.jpg"))[::5])
        },
        inputs={"images": framed(sorted((folder / "coco8").glob("*.jpg")))},
        score=score,
    )


def _minilm(folder: Path) -> Task:
    """Sentence pairs of known similarity; the first 100 pairs calibrate, labels unseen.

    The two sentences of a pair are rows next to each other.
    """
    with np.load(folder / "stsb_dev_tokens.npz") as stored:
        first, second, gold = stored["dev_ids1"], stored["dev_ids2"], stored["dev_score"]
    width = max(first.shape[1], second.shape[1])
    both = [np.pad(a, ((0, 0), (0, width - a.shape[1]))) for a in (first, second)]
    ids = np.stack(both, axis=1).reshape(-1, width).astype(np.int64)
    columns = {
        "input_ids": ids,
        "attention_mask": (ids != 0).astype(np.int64),
        "token_type_ids": np.zeros_like(ids),
    }

    def score(outputs: Array) -> float:
        left, right = outputs[0::2], outputs[1::2]
        norms = np.linalg.norm(left, axis=-1) * np.linalg.norm(right, axis=-1)
        cosine = (left * right).sum(axis=-1) / norms
        return 100 * _spearman(cosine, gold[100 : 100 + len(cosine)])

    return Task(
        "minilm",
        lambda: expanded(folder),
        limit=1.0,
        batch=20,
        calibration={k: v[:200] for k, v in columns.items()},
        inputs={k: v[200:] for k, v in columns.items()},
        score=score,
    )


def _spearman(a: Array, b: Array) -> float:
    """Correlation of ranks; equal values share their mean rank."""
    ranks = []
    for values in (a, b):
        _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
        ends = np.cumsum(counts)
        ranks.append((ends - (counts - 1) / 2)[place])
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def expanded(folder: Path) -> onnx.ModelProto:
    """The folder's own script writes the model from its half-precision weights."""
    with tempfile.TemporaryDirectory() as made:
        path = str(Path(made) / "model.onnx")
        before, sys.argv = sys.argv, ["expand.py", path]
        try:
            runpy.run_path(str(folder / "expand.py"))
        finally:
            sys.argv = before
        return onnx.load(path)


TASKS: dict[str, tuple[str, Callable[[Path], Task]]] = {
    "resnet8_cifar10": ("cifar10", _resnet8),
    "resnet20_cifar10": ("cifar10", _resnet20),
    "dscnn_kws": ("speech_commands", _dscnn),
    "mobilenetv2_1.0_224": ("imagenet", _mobilenetv2),
    "squeezenet1.1": ("imagenet", _squeezenet),
    "minilm": ("minilm", _minilm),
    "yolox_nano": ("detection", _yolox),
}
