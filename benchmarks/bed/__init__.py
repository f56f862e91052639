"""What the benchmarks stand on: services in processes of their own, a slow network, reports."""
