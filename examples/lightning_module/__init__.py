"""A LightningModule that somebody else wrote, compared as it is: `transformer.yaml`. docs/own-task.md."""
