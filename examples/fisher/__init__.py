"""Four uses of a diagonal Fisher information matrix, each with the one that the optimizer holds and those that cost a
pass over the data. `python -m examples.fisher` runs all of them."""
