"""The benchmarks: `make bench` prints each figure beside its goal or beside what ran next to it."""
