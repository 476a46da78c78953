"""The only package that imports Ray: sessions, shard actors, evaluators, and Tune over the population."""
