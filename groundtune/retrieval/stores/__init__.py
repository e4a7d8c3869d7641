"""Storing and searching vectors."""
