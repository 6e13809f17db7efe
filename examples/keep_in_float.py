"""The embedded network in int8 -> which nodes cost accuracy, by keeping them in float in turn.

The search that docs/quantization.md recommends when accuracy drops: the error of the scores
against float32, with all nodes in int8, and with some of them left out.

python examples/keep_in_float.py
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

import qcompiler
from qcompiler.demo import DATA, MODEL

NODES = ("block2/.*", "scores")
"""Names, regular expressions of whole names, or operator types, as --exclude takes them."""


def main() -> None:
    """Print the mean error for every choice."""
    with np.load(DATA) as data:
        calibration, images = data["calibration"], data["test_images"][:100]

    def scores(precision: str, exclude: Sequence[str] = ()) -> np.ndarray:
        artifact = qcompiler.compile(
            MODEL,
            precision=precision,
            calibration=[{"image": image[None]} for image in calibration[:64]],
            input_shapes={"image": (1, 1, 8, 8)},
            exclude=exclude,
        )
        model = qcompiler.load(artifact)
        return np.concatenate([model(image[None]) for image in images])

    wanted = scores("float32")
    spread = np.abs(wanted).mean()
    for exclude in ((), *((node,) for node in NODES)):
        error = np.abs(scores("int8", exclude) - wanted).mean() / spread
        print(f"{'float: ' + exclude[0] if exclude else 'all int8':<22} mean error {error:.2%}")


if __name__ == "__main__":
    main()
