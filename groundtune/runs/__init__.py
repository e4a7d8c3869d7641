"""A run on disk and on the hub: its record, its checkpoints, its remembered settings, and what is published."""
