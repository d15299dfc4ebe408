"""What a benchmark measures and expects."""
