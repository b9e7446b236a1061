"""FAdam in transformers' Trainer, beside AdamW: `python -m examples.huggingface`."""
