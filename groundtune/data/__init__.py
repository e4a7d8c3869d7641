"""What is read from disk: documents, examples, and what model folders say about themselves.

Every file may be broken or hostile; each problem is one line that names the file, the line and the way out.
"""
