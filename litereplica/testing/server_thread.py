"""A server of the standard library in a thread, for tests and the tools that run beside them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from socketserver import TCPServer

POLL_S = 0.05
"""How soon the thread notices that it is to end."""


@contextmanager
def serving(server: TCPServer) -> Iterator[int]:
    """Serve during the block; yields the port. The server is closed afterwards."""
    with server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": POLL_S}, daemon=True)
        thread.start()
        try:
            yield server.socket.getsockname()[1]
        finally:
            server.shutdown()
            thread.join()
