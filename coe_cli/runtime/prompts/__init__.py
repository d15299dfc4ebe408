"""From messages to token ids, in a process of its own: chat templates are foreign programs, and long texts take seconds.

``prompts`` is coe's end and imports neither jinja2 nor tokenizers; the rest runs in the prompt process only.
"""
