"""NVIDIA's GPUs, by compute capability."""
