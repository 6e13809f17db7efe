"""Where a graph is quantized: QuantizeLinear and DequantizeLinear, 16 bits, weights of few bits."""
