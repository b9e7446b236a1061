"""Language modelling: Llama-style models on packed text."""
