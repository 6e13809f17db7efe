"""generic: being written by the kernels colleague (copies, gathers, scatters, the fallback)."""
