"""Data that is moved, gathered or scattered."""
