"""The sections of a job's spec, one module each. Nothing here needs torch."""
