"""What Warren costs: CPU, memory and latency per rollout. `python -m benchmarks --help`."""
