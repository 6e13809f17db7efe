"""Several operators -> the one that they spell."""
