"""Graph, device -> steps: kernels, packed weights, places in memory, barriers."""
