"""A small trained network, its calibration images and its labelled test images.

`MODEL` is an ONNX file: a convolutional network for scikit-learn's 8x8 handwritten digits, made by
train.py; `image` float32 [N,1,8,8] in 0..1 -> `scores` float32 [N,10]. `DATA` is an `.npz` file:
`calibration` [256,1,8,8] (training images), `test_images` [500,1,8,8], `test_labels` int64 [500].
"""

from __future__ import annotations

from pathlib import Path

MODEL = Path(__file__).with_name("digits.onnx")
DATA = Path(__file__).with_name("digits.npz")
