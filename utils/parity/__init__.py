"""Equality with the release, measured: what it computed (recorded in a folder) against what this code computes."""
