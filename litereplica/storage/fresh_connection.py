"""Lets a request avoid connections that were used before: those may all have been lost with the network."""

from __future__ import annotations

from contextvars import ContextVar

WANTS_FRESH_CONNECTION: ContextVar[bool] = ContextVar("WANTS_FRESH_CONNECTION", default=False)
"""True for requests that are made because another one was not answered. Threads have that of who started them."""
