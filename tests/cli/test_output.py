"""What commands print where, and the lines of the log."""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from litereplica.cli import output
from litereplica.cli.logging_setup import LogFileHandler, configure_logging, log_file
from litereplica.errors import EnvironmentProblem
from litereplica.printable import printable, printable_json
from tests.cli.logging_state import logging_restored


@pytest.fixture
def fresh_logging() -> Iterator[None]:
    with logging_restored():
        yield


def test_json_goes_to_stdout_and_reads_back(capsys: pytest.CaptureFixture[str]) -> None:
    value = [{"level": 0, "name": "Grüße", "size": None}]
    output.print_json(value)
    printed = capsys.readouterr()
    assert json.loads(printed.out) == value
    assert "Grüße" in printed.out
    assert printed.err == ""


def test_table_for_a_program_is_neither_cut_nor_wrapped(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_table(["name", "size"], [["x" * 300, 1], ["[bold]y", 22_000]], right=["size"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines] == [["name", "size"], ["x" * 300, "1"], ["[bold]y", "22000"]]
    assert len(lines[1]) == len(lines[2])
    assert not any(line != line.rstrip() for line in lines)


def test_note_goes_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    output.note("the database was switched to WAL mode")
    assert capsys.readouterr() == ("", "litereplica: the database was switched to WAL mode\n")


def test_progress_shows_nothing_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with output.progress("restoring", 100) as advance:
        advance(60)
        advance(40)
    assert capsys.readouterr() == ("", "")


def test_progress_is_drawn_on_a_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    with output.progress("restoring", 2048) as advance:
        advance(2048)
    printed = capsys.readouterr()
    assert "restoring" in printed.err
    assert "2.0/2.0 KiB" in printed.err
    assert printed.out == ""


def test_log_line_has_time_level_logger_and_message(tmp_path: Path, fresh_logging: None) -> None:
    configure_logging(tmp_path / "log")
    logging.getLogger("litereplica.writer").info("published %s", "a\nb")
    logging.getLogger("litereplica.writer").debug("not shown")
    logging.getLogger("botocore.endpoint").info("not shown")
    text = (tmp_path / "log").read_text()
    pattern = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z INFO litereplica\.writer: published a\\nb\n"
    assert re.fullmatch(pattern, text)


def test_log_goes_on_after_its_file_was_rotated_away(tmp_path: Path, fresh_logging: None) -> None:
    configure_logging(tmp_path / "log")
    logging.getLogger("litereplica").info("before")
    (tmp_path / "log").rename(tmp_path / "log.1")
    logging.getLogger("litereplica").info("after")
    assert "before" in (tmp_path / "log.1").read_text()
    assert "after" in (tmp_path / "log").read_text()
    assert log_file() == tmp_path / "log"


@pytest.mark.logs("degraded")
def test_log_goes_to_stderr_without_a_file(fresh_logging: None, capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging()
    logging.getLogger("litereplica").warning("degraded")
    assert " WARNING litereplica: degraded\n" in capsys.readouterr().err
    assert log_file() is None


def test_log_that_cannot_be_written_is_said(tmp_path: Path, fresh_logging: None) -> None:
    with pytest.raises(EnvironmentProblem, match=r"cannot write the log .*/missing/log: No such file"):
        configure_logging(tmp_path / "missing" / "log")


def test_text_from_outside_cannot_act_on_a_terminal() -> None:
    hostile = "a\x1b]0;title\x07b\x9bc\u202ed\ne"
    assert printable(hostile) == "a\\x1b]0;title\\x07b\\x9bc\\u202ed\\ne"
    assert printable("Größe – 日本") == "Größe – 日本"
    document = printable_json(json.dumps({"name": hostile}, indent=2, ensure_ascii=False))
    assert json.loads(document) == {"name": hostile}
    assert not {"\x1b", "\x9b", "\u202e"} & set(document)


def test_a_log_whose_directory_is_gone_ends_nothing_and_is_written_again_when_it_is_back(tmp_path: Path) -> None:
    directory = tmp_path / "log"
    directory.mkdir()
    handler = LogFileHandler(directory / "mount.log", encoding="utf-8")
    record = logging.LogRecord("litereplica", logging.INFO, "", 0, "line", None, None)
    handler.emit(record)
    shutil.rmtree(directory)
    handler.emit(record)
    handler.emit(record)
    directory.mkdir()
    handler.emit(record)
    handler.close()
    assert (directory / "mount.log").read_text() == "line\n"
