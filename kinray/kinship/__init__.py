"""``python -m kinray.kinship``: how alike the weight changes of models are."""
