"""Measuring a model in real processes."""
