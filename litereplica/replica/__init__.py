"""One database of a replica: the current snapshot, its pages from memory, disk and store, polling and past states."""
