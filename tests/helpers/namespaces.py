"""Mount namespaces of tests. A namespace copies every mount that there is, and a copy keeps a mount in use: those of
other tests are detached in it before anything else happens there."""

from __future__ import annotations

from pathlib import Path

_DETACH_OTHERS = """
for other in $(grep fuse.litereplica /proc/self/mounts | cut -d' ' -f2 | grep -vxF "$0"); do
    umount --lazy $other
done
exec "$@"
"""


def in_a_namespace(*, keep: Path = Path("/"), propagation: str = "private") -> list[str]:
    """The beginning of a command line that runs the rest in a namespace of its own.

    Of the mounts of replicas it has that at `keep` alone.
    """
    return ["unshare", "--mount", "--propagation", propagation, "sh", "-c", _DETACH_OTHERS, str(keep)]
