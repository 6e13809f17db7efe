"""conv, matmul and attention by products of tile registers."""
