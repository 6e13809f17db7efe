"""Which values and weights are stored in few bits, by which scales and roundings."""
