"""How good an artifact is: searches within an allowed loss, reports, comparisons."""
