"""coe: a college of experts on one consumer GPU."""

__version__ = "0.1.0"
