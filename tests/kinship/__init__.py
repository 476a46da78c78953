"""The kinship command and what it stands on."""
