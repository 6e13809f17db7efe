"""Windows that see each channel by itself."""
