"""What an answer is made of: sampling, stops, thinking, code blocks."""
