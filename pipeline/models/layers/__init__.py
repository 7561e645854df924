"""Building blocks shared by models. Each module has one idea; none knows a model by name."""
