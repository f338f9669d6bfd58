"""Flower and NVIDIA FLARE at the same exercise, each in a virtual environment of its own. Nothing here is part of the product."""
