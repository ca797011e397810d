"""Flags that hold several names, joined with ``||``."""

from __future__ import annotations

from collections.abc import Collection

from model.errors import InputError


def split_names(joined: str) -> list[str]:
    """``"a || b||"`` -> ``["a", "b"]``: names without surrounding spaces, empty ones dropped."""
    return [name.strip() for name in joined.split("||") if name.strip()]


def check_name(name: str, *, flag: str, known: Collection[str]) -> None:
    """Refuse a name that is not known.

    Raises:
        InputError: if ``name`` is not in ``known``; the message lists these.
    """
    if name not in known:
        raise InputError(f"{flag}: {name!r} is unknown; available are {', '.join(known)} (several are joined with ||)")
