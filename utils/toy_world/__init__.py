"""The toy world: drawn scenes with exact masks, questions about them, and base weights that know them.

Everything here is a function of a seed and needs no download, so that the whole road of the project (train,
save, merge, chat, evaluate) can be walked on a laptop without real data. ``scene`` draws, ``questions`` asks,
``tree`` writes the dataset, ``base`` makes the LLaVA base and the CLIP tower, ``world`` puts them together.
"""
