"""Change weights."""
