"""Files that run inside of sandboxes. They import only the standard library and each other."""
