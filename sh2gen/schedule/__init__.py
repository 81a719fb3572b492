"""Configs of plans."""
