"""One file per command: parse the options, call the core and the runtime, hand the result to output."""
