"""Strings <-> ids: conversation templates, token strings, the tokenizer."""
