"""Instruction sets of ARM, 64 and 32 bits."""
