"""Abridged."""
