"""Files -> pages of text, one file per format. HTML, Word, PowerPoint and Excel become Markdown, so that passages can
be cut at their headings and tables."""
