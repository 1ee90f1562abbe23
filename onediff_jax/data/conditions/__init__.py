"""Condition images, computed from a record."""
