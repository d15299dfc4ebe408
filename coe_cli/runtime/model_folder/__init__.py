"""The files of a model's folder that workers and prompts read: which they are, that they lie in it, and what they say."""
