"""conv and matmul by fewer products: Strassen, Winograd."""
