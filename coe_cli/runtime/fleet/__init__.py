"""Many machines: placement, simulated waiting times, and Ray."""
