"""The Django project: one app per noun. The arrows point ingest -> jobs -> (telemetry, blobs) -> fleet -> teams -> core."""
