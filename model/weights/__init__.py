"""Folders <-> weights: what may be missing, what may be left over, and how the release's folders are read."""
