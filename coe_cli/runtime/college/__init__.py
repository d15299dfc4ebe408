"""The college: the scheduler's decisions carried out with real workers, and what they cost and take."""
