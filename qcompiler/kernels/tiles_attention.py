"""Attention regions of bfloat16 on tile registers -> TIR: a head at a time, scores never leave L2."""
