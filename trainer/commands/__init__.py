"""The commands of `trainmaster`, a module for each who types them."""
