"""Graphs with open sizes -> graphs of their largest sizes, whose results are exact for all."""
