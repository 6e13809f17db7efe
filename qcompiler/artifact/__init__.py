"""Code, weights and manifest <-> one file."""
