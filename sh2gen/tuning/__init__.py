"""The search for configs, its records and tables."""
