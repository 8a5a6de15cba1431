"""What a run leaves in the store, `runs/<id>/`: who it is, what it published, its checkpoints and its counters."""
