"""Plans printed as one Python file."""
