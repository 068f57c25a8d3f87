"""Finished runs evaluated, folded and adapted."""
