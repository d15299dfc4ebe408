"""The college over HTTP: the process, OpenAI's API, who may ask, how one is found, and its client."""
