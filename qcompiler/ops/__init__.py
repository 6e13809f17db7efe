"""Definitions of all operators, one file per family; importing this package registers them."""

from __future__ import annotations

import importlib
import pkgutil

from qcompiler.ops.registry import (
    OPERATORS,
    Operator,
    broadcast,
    elementwise,
    is_elementwise,
    make,
    operator,
    required,
    typed,
)

for _module in sorted(m.name for m in pkgutil.iter_modules(__path__)):
    importlib.import_module(f"{__name__}.{_module}")

from qcompiler.ops.evaluate import evaluate, known_value, meaning  # noqa: E402  (needs the registry)

__all__ = [
    "OPERATORS",
    "Operator",
    "broadcast",
    "elementwise",
    "evaluate",
    "is_elementwise",
    "known_value",
    "make",
    "meaning",
    "operator",
    "required",
    "typed",
]
