"""Instruction sets, cores and this machine, as values."""
