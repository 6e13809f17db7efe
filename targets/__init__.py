"""The policy on hardware: a file for each instruction set, a TOML file for each device."""

import qcompiler.kernels  # noqa: F401  (TVM is imported as kernels import it)
