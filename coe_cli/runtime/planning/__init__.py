"""What plan and profile check are told of this machine and of earlier runs."""
