"""The tool worker: runs the functions that models call, as safely as model output is hostile."""
