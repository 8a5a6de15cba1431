"""What people and machines see of a run: logs and progress."""
