"""Pruned and quantized networks, trained again."""
