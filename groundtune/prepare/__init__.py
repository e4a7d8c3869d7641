"""Preparing documents and examples: from folders of files, from published data, and with questions by an LLM."""
