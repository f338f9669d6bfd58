"""What every app stands on: states, live messages, errors."""
