"""Worker kinds, each on the shared core loop (`core.py`); they meet only as messages."""
