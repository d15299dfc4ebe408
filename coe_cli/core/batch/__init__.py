"""Rows of a batch: parsing, order, progress."""
