"""LTX files in a `Storage`: what both the writer and the readers need of a replica's files."""
