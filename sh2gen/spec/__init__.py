"""The operator language."""
