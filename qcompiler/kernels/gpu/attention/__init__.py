"""softmax(q k' + mask) v, with its scores in registers and shared memory only."""
