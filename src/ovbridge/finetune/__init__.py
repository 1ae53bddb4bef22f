"""Teaching a trained detector new classes from a few boxes, without losing the names it already knows."""
