"""Content-addressed files: weights, updates, artifacts."""
