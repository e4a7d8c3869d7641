"""What a command does, each recipe one function that reads top to bottom."""
