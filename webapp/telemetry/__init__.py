"""What was measured: series, chunks, log lines, and their way to the browser."""
