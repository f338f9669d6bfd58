"""The process that drains the nodes' streams."""
