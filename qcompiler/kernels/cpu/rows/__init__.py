"""Operators along an axis: normalization, reductions, ArgMax, recurrent layers."""
