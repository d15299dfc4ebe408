"""What a command of several steps does once it is parsed: choose, run, show, keep; sees both the runtime and output."""
