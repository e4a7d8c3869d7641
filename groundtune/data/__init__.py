"""Reading and checking documents and examples.

Every file may be broken or hostile; each problem is one line that names the file, the line and what to do.
"""
