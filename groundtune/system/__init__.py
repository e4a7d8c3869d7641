"""The machine: files on disk, signals, memory, processes, and text that is safe to print.

Nothing here knows about questions or answers.
"""
