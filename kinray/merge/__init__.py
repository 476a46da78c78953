"""``kinray merge``: mergekit's recipes, made by kinray's methods and written as a model folder."""
