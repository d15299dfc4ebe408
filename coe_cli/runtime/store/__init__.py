"""The models folder: how a model gets there, whether it is whole, and how it leaves."""
