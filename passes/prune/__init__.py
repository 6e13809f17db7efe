"""Channels and weights that are asked to go."""
