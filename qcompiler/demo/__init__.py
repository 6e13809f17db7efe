"""Nothing -> a small trained network, its calibration images and its labelled test images, to try things on.

`MODEL` is an ONNX file: a convolutional network for scikit-learn's 8x8 handwritten digits, trained by train.py.
`DATA` is an `.npz` file: `calibration` float32 [256,1,8,8], `test_images` float32 [500,1,8,8], `test_labels` int64 [500].
"""

from __future__ import annotations

from pathlib import Path

MODEL = Path(__file__).with_name("digits.onnx")
DATA = Path(__file__).with_name("digits.npz")
