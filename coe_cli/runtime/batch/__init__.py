"""Many prompts from a file: rows, journal, output, and the engine on this machine."""
