"""Plan -> machine code."""
