"""The commands of the tool, one module per noun group. Each has `register(nouns)` and its functions."""
