"""Kernels: TIR made by generators from (region, device, knobs)."""

import qcompiler.kernels.tvm_alone  # noqa: F401
