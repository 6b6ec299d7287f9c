"""Where a writer continues after a restart."""
