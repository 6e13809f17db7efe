"""A folder of trained models -> subjects: where each one lies, its sizes, and samples it was made
for.

    python -m benchmarks.peers --trained ~/material --out results/trained

measures all that are there, `--only dtln yolox` some. A model without samples of its own here gets
random ones: times hardly depend on them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx

from benchmarks.labelled import expanded
from benchmarks.subjects import SAMPLES, Feed, Subject, prepare


@dataclass(frozen=True)
class Trained:
    """One model: its file in the folder (or what makes it), numbers for its symbols, samples."""

    path: str
    sizes: Mapping[str, int] = field(default_factory=dict)
    samples: Callable[[Path], Feed] = lambda folder: {}
    load: Callable[[Path], onnx.ModelProto] = onnx.load


def _clips(folder: Path) -> Feed:
    with np.load(folder / "kws_features.npz") as stored:
        return {"mfcc": stored["x"][:SAMPLES]}


def _stories(folder: Path) -> Feed:
    ids = np.load(folder / "sampled_ids.npy").astype(np.int64)
    return {"ids": np.resize(ids.reshape(-1), (SAMPLES, 128))}


def _sentences(folder: Path) -> Feed:
    """Tokens, as many as 128 hold, from several sentences: no position is padding."""
    with np.load(folder / "stsb_dev_tokens.npz") as stored:
        words = stored["dev_ids1"][stored["dev_ids1"] != 0]
    ids = np.resize(words, (SAMPLES, 128)).astype(np.int64)
    return {"input_ids": ids, "attention_mask": ids * 0 + 1, "token_type_ids": ids * 0}


def _chunks(folder: Path) -> Feed:
    """Half a second of sound in chunks; nothing heard before."""
    sound = np.random.default_rng(0).standard_normal((SAMPLES, 576), np.float32) * 0.1
    return {"input": sound, "sr": np.full(SAMPLES, 16000)}


def _expanded(path: Path) -> onnx.ModelProto:
    return expanded(path.parent)


MODELS: dict[str, Trained] = {
    "mobilenetv2_1.0_224": Trained("imagenet/mobilenetv2_1.0_224.onnx"),
    "squeezenet1.1": Trained("imagenet/squeezenet1.1.onnx"),
    "resnet20_cifar10": Trained("cifar10/resnet20_cifar10.onnx"),
    "resnet8_cifar10": Trained("cifar10/resnet8_cifar10.onnx"),
    "dscnn_kws": Trained("speech_commands/dscnn_kws.onnx", samples=_clips),
    "minilm": Trained("minilm/expand.py", {"S": 128}, _sentences, _expanded),
    "yolox_nano": Trained("detection/yolox_nano.onnx"),
    "deeplabv3_mnv2": Trained("deeplab/deeplabv3_mnv2_dm05_voc.onnx"),
    "ppocr_v3_det": Trained(
        "ppocr/ch_PP-OCRv3_det_infer.onnx",
        {"p2o.DynamicDimension.1": 640, "p2o.DynamicDimension.2": 640},
    ),
    "silero_vad": Trained(
        "silero_vad/silero_vad_op18_ifless.onnx", {"batch": 1, "sequence": 576}, _chunks
    ),
    "dtln_1": Trained("speech_enhance/dtln_1.onnx"),
    "dtln_2": Trained("speech_enhance/dtln_2.onnx"),
    "supres3x": Trained("super_resolution/supres3x.onnx", {"H": 170, "W": 170}),
    "llama260k": Trained("llama260k/aidreams260k.onnx", {"T": 128}, _stories),
}


def subjects(folder: Path, only: Sequence[str], work: Path, batch: int) -> Iterator[Subject]:
    """The models whose file is there, each when it is its turn; `only`: parts of names."""
    for name, model in MODELS.items():
        path = folder / model.path
        if path.is_file() and (not only or any(part in name for part in only)):
            given = model.samples(path.parent)
            proto = model.load(path)
            yield prepare(proto, work / name, batch=batch, sizes=model.sizes, given=given)
