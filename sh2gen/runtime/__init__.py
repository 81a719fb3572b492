"""Generated files as callables, and their times."""
