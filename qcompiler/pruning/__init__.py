"""Channels and weights that are taken away, and the fitting of those that stay."""
