"""Drawings of the nouns, grouped by theme; each is a tuple of closed polygons in painting order."""
