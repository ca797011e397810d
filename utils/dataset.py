"""The import names of the release; the code is in ``utils.data``."""

from .data.collate import collate as collate_fn
from .data.mixture import Mixture as HybridDataset
from .data.mixture import ValDataset

__all__ = ["HybridDataset", "ValDataset", "collate_fn"]
