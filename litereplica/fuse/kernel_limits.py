"""What the kernel sends to a daemon at once: raised where we may, which is usually as root."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from litereplica.fuse.mountpoint import Mount

MAX_BACKGROUND = 256
"""Number of background requests, mostly read-ahead, that the kernel sends to a daemon at once; its default is 12."""

READ_AHEAD_KIB = 512
"""How far the kernel reads ahead, and so how large its requests are; its default is 128. More is not faster."""

_CONNECTIONS = Path("/sys/fs/fuse/connections")
_BACKING_DEVICES = Path("/sys/class/bdi")


def raise_max_background(mount: Mount) -> None:
    """Let the kernel send more read-ahead requests at once, where we may: while the store is silent they fill up."""
    connection = _CONNECTIONS / mount.device.partition(":")[2]
    with suppress(OSError):
        (connection / "max_background").write_text(str(MAX_BACKGROUND))
        (connection / "congestion_threshold").write_text(str(MAX_BACKGROUND * 3 // 4))


def raise_read_ahead(mount: Mount) -> None:
    """Let the kernel read further ahead of sequential readers, in larger requests, where we may."""
    with suppress(OSError):
        (_BACKING_DEVICES / mount.device / "read_ahead_kb").write_text(str(READ_AHEAD_KIB))
