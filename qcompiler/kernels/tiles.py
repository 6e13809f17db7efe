"""conv or matmul on an instruction set with tile registers -> a TIR kernel and its cost.

Owns every contraction whose `Mac` has rows > 1; the vector generators own rows == 1.
"""
