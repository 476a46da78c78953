"""``python -m kinray.evolve``: search for a good merge."""
