"""Retrieval of ranked passages by vectors, words, or both. `opening` opens the retriever that the arguments select."""
