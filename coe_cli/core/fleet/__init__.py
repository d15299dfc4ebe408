"""Placing models on several machines."""
