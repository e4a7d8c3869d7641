"""Storage of document vectors, and search over them."""
