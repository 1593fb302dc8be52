"""Scores trajectories: every one goes through here, failed ones unscored.

Read `worker.py` (one trajectory's life), then `scoring.py` (from rewards to a verdict).
"""
