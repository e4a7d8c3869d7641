"""Choosing a prompt's passages, writing the prompt, and encoding it as rows of token ids.

Training, evaluation and serving call the same functions.
"""
