"""The records of a run: a folder of Parquet tables, written so that a crash loses nothing that was recorded."""
