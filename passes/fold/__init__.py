"""What can be computed or simplified while compiling."""
