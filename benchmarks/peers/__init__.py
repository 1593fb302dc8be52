"""Other rollout tools, measured as Warren is: `python -m benchmarks.peers`, see ../README.md."""
