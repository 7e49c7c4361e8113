"""Side-by-side benchmarks against real peers: `make bench`."""
