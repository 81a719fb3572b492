"""The search for numbers, its records and tables."""
