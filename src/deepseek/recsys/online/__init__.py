"""A service that learns from events as they come, and ranks."""
