"""normalize: being written by the lead (not the kernels colleague)."""
