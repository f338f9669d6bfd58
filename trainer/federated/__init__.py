"""Federated training: the client's side, and the pure mathematics of the server's. Only client, local and
initial need torch."""
