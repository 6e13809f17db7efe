"""Pruning of channels and weights."""
