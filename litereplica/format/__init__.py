"""Sans-IO codecs: bytes in, values out.

Nothing here opens a file, reads a clock, logs, or depends on an event loop. Every decoder returns a validated value or
raises a `litereplica.errors.FormatError`, whatever bytes arrive. Its memory is proportional to the size of the input,
never to a number that the input contains.
"""
