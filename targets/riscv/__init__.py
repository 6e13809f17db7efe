"""Instruction sets of RISC-V."""
