"""conv and matmul by weights with blocks of zeros, or of few bits."""
