"""softmax(q k' + mask) v by vector products."""
