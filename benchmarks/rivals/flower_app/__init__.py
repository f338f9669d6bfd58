"""The exercise as a Flower app: the package that `flwr run` bundles (see ../flower.py)."""
