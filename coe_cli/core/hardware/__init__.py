"""Profiles: memory pools, reserves and other settings of a machine."""
