"""What is remembered: finished calls of unfinished rollouts, and what is committed of each run."""
