"""What the commands do: each recipe is one function that reads from top to bottom."""
