"""Importing, decided: what a GGUF file's or a Hugging Face folder's metadata says, and which graph is to be written.

Pure: no file is opened here. May be imported by ``runtime.importing`` and by ``commands``.
"""
