"""How the page looks around the viewer: fonts of the visitor's system, and nothing from another host."""

from __future__ import annotations

from gradio.themes import Base

HEAD = '<meta name="color-scheme" content="light dark">'


def make_theme() -> Base:
    """Gradio's plain theme without its web fonts; dark and light follow the browser."""
    return Base(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
