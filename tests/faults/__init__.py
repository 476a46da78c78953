"""What a run survives, with real processes: each kind of fault in a file of its own."""
