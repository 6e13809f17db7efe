"""Softmax, normalization and reductions: numbers that all threads of a row share."""
