"""A task in one file, `textures.py`, and its config, `textures.yaml`. docs/own-task.md."""
