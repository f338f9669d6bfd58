"""Secure aggregation: masks that cancel in the sum of a round's updates (Bonawitz et al. 2017)."""
