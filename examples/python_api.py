"""The embedded network -> compiled, saved, loaded, run, compared with onnxruntime.

python examples/python_api.py
"""

from __future__ import annotations

import importlib.util
import tempfile
from pathlib import Path

import numpy as np

import qcompiler
from qcompiler.demo import DATA, MODEL


def main() -> None:
    """Compile for this machine in int8, and count how many digits it reads."""
    with np.load(DATA) as data:
        calibration, images, labels = (
            data[name] for name in ("calibration", "test_images", "test_labels")
        )
    artifact = qcompiler.compile(
        MODEL,
        precision="int8",
        calibration=[{"image": image[None]} for image in calibration],
        input_shapes={"image": (1, 1, 8, 8)},
    )
    with tempfile.TemporaryDirectory() as folder:
        path = artifact.save(Path(folder) / "digits.qc")
        print(f"{path.name}: {path.stat().st_size} bytes, {artifact.manifest.variants[0]}")
        model = qcompiler.load(path)
    for value in (*model.inputs, *model.outputs):
        print(value)
    scores = np.concatenate([model(image[None]) for image in images])
    print(f"int8 reads {np.mean(scores.argmax(1) == labels):.1%} of {len(labels)} digits")
    if importlib.util.find_spec("onnxruntime"):
        import onnxruntime

        session = onnxruntime.InferenceSession(MODEL, providers=["CPUExecutionProvider"])
        (wanted,) = session.run(None, {"image": images})
        agree = np.mean(scores.argmax(1) == wanted.argmax(1))
        print(f"it agrees with onnxruntime in float32 on {agree:.1%}")


if __name__ == "__main__":
    main()
