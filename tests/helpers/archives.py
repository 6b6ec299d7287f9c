"""Archives among the test data."""

from __future__ import annotations

import tarfile
from pathlib import Path
from typing import Any


def unpack(archive: tarfile.TarFile, directory: Path) -> None:
    """Unpack an archive. The first releases of Python 3.11, which Debian has, know no filters of archives."""
    options: dict[str, Any] = {"filter": "tar"} if hasattr(tarfile, "tar_filter") else {}
    archive.extractall(directory, **options)
