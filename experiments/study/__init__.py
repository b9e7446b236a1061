"""Plans, tunes and runs a declared protocol: `python -m experiments.study run | status | plan`."""
