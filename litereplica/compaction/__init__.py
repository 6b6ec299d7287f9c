"""Merging LTX files into higher levels, and deleting superfluous ones."""
