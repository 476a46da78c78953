"""The pure part: recipes, statistics, kinship, merge methods and scores. No Ray, no files."""
