"""Where vectors are kept, and how they are searched."""
