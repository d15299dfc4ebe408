"""Which model is loaded and which request runs."""
