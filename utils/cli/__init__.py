"""Command lines: flags from dataclasses, and what every command prints and returns."""
