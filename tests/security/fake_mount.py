"""A FUSE file system of another user that calls itself litereplica. Arguments: mount point, content of its status file.

Run as a program; prints `ready` once it is mounted, and serves until it is killed.
"""

from __future__ import annotations

import errno
import stat
import sys

import pyfuse3
import trio

from litereplica.fuse.names import STATUS_NAME

_STATUS = 2


class FakeFileSystem(pyfuse3.Operations):
    """A directory with nothing but the status file."""

    def __init__(self, content: bytes) -> None:
        super().__init__()
        self._content = content

    async def getattr(self, inode: int, ctx: object = None) -> pyfuse3.EntryAttributes:
        attributes = pyfuse3.EntryAttributes()
        attributes.st_ino = pyfuse3.InodeT(inode)
        attributes.st_mode = pyfuse3.ModeT(stat.S_IFREG | 0o644 if inode == _STATUS else stat.S_IFDIR | 0o755)
        attributes.st_nlink = 1
        attributes.st_size = len(self._content)
        return attributes

    async def lookup(self, parent_inode: int, name: bytes, ctx: object = None) -> pyfuse3.EntryAttributes:
        if name != STATUS_NAME.encode():
            raise pyfuse3.FUSEError(errno.ENOENT)
        return await self.getattr(_STATUS)

    async def open(self, inode: int, flags: int, ctx: object = None) -> pyfuse3.FileInfo:
        return pyfuse3.FileInfo(fh=pyfuse3.FileHandleT(inode), direct_io=True)

    async def read(self, fh: int, off: int, size: int) -> bytes:
        return self._content[off : off + size]


def main(mountpoint: str, content: str) -> None:
    """Mount and serve."""
    options = set(pyfuse3.default_options) | {"fsname=fake", "subtype=litereplica", "allow_other"}
    pyfuse3.init(FakeFileSystem(content.encode()), mountpoint, options)
    print("ready", flush=True)
    trio.run(pyfuse3.main)


if __name__ == "__main__":
    main(*sys.argv[1:])
