"""What kernels for GPUs are written with: blocks of threads, and what the threads share."""
