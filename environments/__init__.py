"""The built-in environments: one file each, written only against `warren`'s public names."""
