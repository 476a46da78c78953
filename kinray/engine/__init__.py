"""The numeric work of one process: the Gram pass over weights, and turning recipes into weights."""
