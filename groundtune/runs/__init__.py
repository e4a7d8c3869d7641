"""What a run leaves on disk: its record, its checkpoints, what its folder remembers, and its place on the hub."""
