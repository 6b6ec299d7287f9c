"""The soak test behind scripts/soak: everything at once, for as long as one likes, with an oracle.

`soak` starts everything and collects what was seen; `judge` says what was wrong, and `report` writes it down.
`subjects` are the processes that are watched and killed: the writer, the mounts, and the readers, which run `reader`.
`application` commits and keeps the ledger; `chaos` kills, cuts and drops; `watch` samples what must stay flat. `state`
is what all of them know of the database.
"""
