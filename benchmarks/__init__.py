"""A model -> how fast each engine runs it, all measured side by side in one run."""
