"""The exercise for NVIDIA FLARE. It runs in FLARE's own environment, with this folder's parent on the path (see ../flare.py)."""
