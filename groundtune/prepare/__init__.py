"""From what people have to examples and documents: folders of files, published data, questions by an LLM."""
