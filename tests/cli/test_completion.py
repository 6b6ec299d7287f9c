"""Completion as the shells ask for it: the real ones where they are installed."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from litereplica.cli import main
from litereplica.errors import ExitCode
from litereplica.testing.mounts import litereplica_binary

PROGRAMS = str(Path(litereplica_binary()).parent)
ENVIRONMENT = os.environ | {"PATH": f"{PROGRAMS}:{os.environ['PATH']}"}

BASH = r"""
eval "$(litereplica completion bash)"
for line in 're' 'restore --integrity-check ' '-debug mount --po'; do
    COMP_WORDS=(litereplica $line) COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
    [ "${line% }" = "$line" ] || { COMP_WORDS+=(''); COMP_CWORD=$((COMP_CWORD + 1)); }
    COMPREPLY=()
    _litereplica_completion litereplica
    echo "$line: ${COMPREPLY[*]}"
done
"""

FISH = r"""
litereplica completion fish | source
for line in 're' 'restore --integrity-check ' '-debug mount --po'
    echo "$line:" (complete --do-complete "litereplica $line" | string split --fields 1 \t)
end
"""

ZSH = r"""
compdef() { :; }
source <(litereplica completion zsh)
_describe() { print -r -- ${${(P)3}%%:*}; }
for line in 're' 'restore --integrity-check ' '-debug mount --po'; do
    words=(litereplica ${=line}) CURRENT=${#words}
    [[ $line = *' ' ]] && words+=('') CURRENT=$((CURRENT + 1))
    compadd() { print -r -- ${(P)@[-1]}; }
    print -rn -- "$line: "
    _litereplica_completion
done
"""

EXPECTED = {
    "re": "replicate register restore reset",
    "restore --integrity-check ": "none quick full",
    "-debug mount --po": "--poll-interval --poll-interval-max",
}


def ask(*command: str, home: Path) -> str:
    environment = ENVIRONMENT | {"HOME": str(home), "TERM": "dumb"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, check=False)
    assert done.stderr == ""
    return done.stdout


@pytest.mark.slow
def test_bash_completes_commands_options_and_values(tmp_path: Path) -> None:
    answers = dict(line.split(": ", 1) for line in ask("bash", "--norc", "-c", BASH, home=tmp_path).splitlines())
    assert answers == EXPECTED


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("fish") is None, reason="needs fish")
def test_fish_completes_commands_options_and_values(tmp_path: Path) -> None:
    lines = ask("fish", "--no-config", "-c", FISH, home=tmp_path).splitlines()
    answers = dict(line.split(": ", 1) for line in lines)
    assert {name: sorted(words.split()) for name, words in answers.items()} == {
        name: sorted(words.split()) for name, words in EXPECTED.items()
    }


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("zsh") is None, reason="needs zsh")
def test_zsh_completes_commands_options_and_values(tmp_path: Path) -> None:
    answers = dict(line.split(": ", 1) for line in ask("zsh", "-f", "-c", ZSH, home=tmp_path).splitlines())
    assert {name: " ".join(sorted(words.split())) for name, words in answers.items()} == {
        name: " ".join(sorted(words.split())) for name, words in EXPECTED.items()
    }


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("mount s3://b", "file,s3://b"),
        ("restore -force --int", "plain,--integrity-check"),
        ("help ver", "plain,verify\nplain,version"),
        ("restore -forc --int", ""),
        ("nonsense x", ""),
    ],
)
def test_program_answers_a_script_and_never_with_an_error(
    line: str, expected: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = f"litereplica {line}"
    for name, value in (
        ("_LITEREPLICA_COMPLETE", "bash_complete"),
        ("COMP_WORDS", words),
        ("COMP_CWORD", words.count(" ")),
    ):
        monkeypatch.setenv(name, str(value))
    assert main.run([]) == ExitCode.OK
    shown = capsys.readouterr()
    assert (shown.out.strip(), shown.err) == (expected, "")
