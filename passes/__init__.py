"""The policy on graphs: one file a pass; the first word of its name is its stage."""
