"""Data that changes its place."""
