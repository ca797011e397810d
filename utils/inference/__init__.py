"""One question about one image, for people: what is shown and what is written."""
