"""Data: where it lies, how it is read, split, scaled and shared out."""
