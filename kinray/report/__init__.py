"""What people see of a run: the terminal, the leaderboard, model cards and recipes."""
