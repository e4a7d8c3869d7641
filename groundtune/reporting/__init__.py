"""What a run leaves for people: results, curves, and the report as Markdown and HTML."""
