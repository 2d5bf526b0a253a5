"""Degraded slices, and the curves over them."""
