"""The readable output of a run: results, curves, and the report as Markdown and HTML."""
