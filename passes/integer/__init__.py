"""Lowering of explicit QDQ to integer operators."""
