"""Runs rollouts: holds the task, makes its calls, ends in exactly one trajectory.

Read `worker.py` (one task's life), then `loop.py` (the default agent), then `context.py`.
"""
