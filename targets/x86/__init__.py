"""Instruction sets of x86."""
