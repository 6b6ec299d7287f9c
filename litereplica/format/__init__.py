"""Sans-IO codecs: bytes in, values out.

Nothing here opens a file, looks at a clock, logs, or knows an event loop. Every decoder has two
outcomes for whatever bytes arrive, a value that was validated or one `litereplica.errors.FormatError`;
memory follows the size of the input, never a number that the input merely claims.
"""
