"""Data movement: copies, gathers, scatters."""
