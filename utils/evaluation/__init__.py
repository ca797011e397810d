"""Scores: a model answers, masks are matched with the true ones, and every number names its protocol."""
