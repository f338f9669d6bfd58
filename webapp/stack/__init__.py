"""One machine, everything: the processes behind make up."""
