"""The training engine: specs, mathematics, runners and the node agent. It knows nothing of Django or of the web application."""
