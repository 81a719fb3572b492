"""Operators against bounds and other packages."""
