"""A language model behind an OpenAI-compatible endpoint: asked once for each text, at a limited cost. No torch."""
