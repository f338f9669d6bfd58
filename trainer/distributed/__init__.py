"""Distributed training: what one rank does. torch.distributed and torch elastic lie under it."""
