"""Numbers of plans."""
