"""A dtype's name, as spelled by ONNX and the manifest -> the numpy dtype that holds its values."""

from __future__ import annotations

from functools import cache
from typing import Union

import numpy as np
from numpy.typing import NDArray

from qcompiler.errors import Error

Dim = Union[int, str]
"""Of a shape: a number, or the symbol of one that is not known yet."""
Array = NDArray[np.generic]

NARROW = (
    "bfloat16",
    "float8_e4m3fn",
    "float8_e4m3fnuz",
    "float8_e5m2",
    "float8_e5m2fnuz",
    "float8_e8m0fnu",
    "float4_e2m1fn",
    "int4",
    "uint4",
    "int2",
    "uint2",
)
"""Dtypes that ml_dtypes adds to numpy; it is imported on first use."""


@cache
def numpy_dtype(dtype: str) -> np.dtype[np.generic]:
    """ "bfloat16" -> the numpy dtype that holds it.

    Raises Error if ml_dtypes is needed and not installed.
    """
    if dtype not in NARROW:
        return np.dtype(object if dtype == "string" else dtype)
    try:
        import ml_dtypes
    except ImportError as e:
        raise Error(
            f"numpy has no {dtype} without the package ml_dtypes", hint="pip install ml_dtypes"
        ) from e
    found: np.dtype[np.generic] = np.dtype(getattr(ml_dtypes, dtype))
    return found
