"""Which committed run is served, `models/<name>/`, and what is kept."""
