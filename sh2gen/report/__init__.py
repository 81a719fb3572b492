"""What was found, for a person."""
