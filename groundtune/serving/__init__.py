"""A trained model, asked by people: a dialogue over the documents."""
