"""Windows over pictures: depthwise filters, pools, resampling."""
