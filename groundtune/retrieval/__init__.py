"""A question -> ranked passages, by vectors, by words, or both. `opening` makes the retriever that arguments name."""
