"""An ONNX model -> a small native artifact that runs it fast, at the same accuracy."""

from __future__ import annotations

__version__ = "0.1.0"
