"""conv and matmul by vector products."""
