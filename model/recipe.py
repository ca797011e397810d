"""How published models were trained where paper and release differ, and no other key of config.json says so."""

from __future__ import annotations

RECIPE_OF_PUBLISHED_WEIGHTS = {
    "refine_alpha": 1.0,
    "trained_set": "released",
    "projector_init": "fresh",
    "query_init": "released",
}
