"""Federated rounds among virtual clients, trained side by side on a few nodes."""
