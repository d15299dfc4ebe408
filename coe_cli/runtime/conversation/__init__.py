"""Conversations: the session of `coe chat`, and the file of what was asked."""
