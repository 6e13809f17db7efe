"""Plan -> machine code."""

import qcompiler.kernels  # noqa: F401  (TVM is imported as kernels import it)
