"""How good a model is: metrics, the papers' robot user, and runs over a data set."""
