"""The remote side of a writer: LTX files, page checksums, the lease."""
