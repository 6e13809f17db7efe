"""Operators along an axis: norms, sums, searches, recurrent cells."""
