"""The base weights of the toy world: a CLIP tower and a LLaVA base, pretrained and packed into one file."""
