"""What all kernels are written with: vectors, formulas, loops, epilogues."""
