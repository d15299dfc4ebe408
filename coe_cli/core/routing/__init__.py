"""Which expert answers, with which model, and synthesis."""
