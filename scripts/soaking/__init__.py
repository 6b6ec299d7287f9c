"""The soak test behind scripts/soak: everything at once, for as long as one likes, with an oracle.

`soak` starts and judges; `application` commits and keeps the ledger; `reader` is one client; `chaos` kills, cuts and
drops; `watch` samples what must stay flat; `report` writes it down. `state` is what all of them know of the database.
"""
