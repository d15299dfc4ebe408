"""What models take of memory, and plans of it."""
