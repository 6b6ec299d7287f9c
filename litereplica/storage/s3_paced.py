"""HTTP connections for botocore whose answers are paced.

urllib3 limits the time between two bytes only, and botocore reads listings and error messages to their end.
"""

from __future__ import annotations

from botocore.awsrequest import (
    AWSHTTPConnection,
    AWSHTTPConnectionPool,
    AWSHTTPSConnection,
    AWSHTTPSConnectionPool,
)

from litereplica.storage.paced_response import Paced


class PacedHTTPConnection(Paced, AWSHTTPConnection):  # type: ignore[misc] # so is botocore's own
    """A connection without TLS."""


class PacedHTTPSConnection(Paced, AWSHTTPSConnection):  # type: ignore[misc] # so is botocore's own
    """A connection with TLS."""


def pace_answers() -> None:
    """Let all clients of botocore in this process use these connections."""
    AWSHTTPConnectionPool.ConnectionCls = PacedHTTPConnection
    AWSHTTPSConnectionPool.ConnectionCls = PacedHTTPSConnection
