"""The names of the stages, which flags know before anything is compared."""

STAGE_NAMES = ("tokenizer", "images", "vision", "train_step", "merge", "chat", "val_datasets")
