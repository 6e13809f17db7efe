"""Windows over images: depthwise filters, pooling, resampling."""
