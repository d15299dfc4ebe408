"""One model in one process: the worker, its protocol, and the parent's end of it."""
