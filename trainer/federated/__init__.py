"""Federated training: the client's side, and the pure mathematics of the server's. Only client and initial need torch."""
