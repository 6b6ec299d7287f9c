"""The directory beside a database."""

from __future__ import annotations

from pathlib import Path

import pytest

from litereplica.errors import EnvironmentProblem
from litereplica.writer.database.state_directory import StateDirectory


def test_a_database_that_is_yet_to_be_restored_has_a_directory(tmp_path: Path) -> None:
    with StateDirectory(tmp_path / "app.db") as state:
        noted = state.writer_id()
    with StateDirectory(tmp_path / "app.db") as state:
        assert state.writer_id() == noted


def test_a_directory_that_others_may_write_to_is_refused_although_the_database_is_missing(tmp_path: Path) -> None:
    with StateDirectory(tmp_path / "app.db") as state:
        state.path.chmod(0o777)
    with pytest.raises(EnvironmentProblem, match="others may write"):
        state.__enter__()
