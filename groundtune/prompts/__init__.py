"""Which passages a prompt holds, how a prompt is written, and the rows of token ids that come of it.

Training, evaluation and serving call the same functions.
"""
