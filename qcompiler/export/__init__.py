"""A model -> a folder of C: an object file, a header, and nothing that they need."""
