"""Serving: a dialogue with a model about the documents."""
