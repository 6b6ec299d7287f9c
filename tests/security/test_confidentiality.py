"""Who may read what is made here: files no more than their source, credentials only those who need them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from litereplica.storage.credentials import Credentials, without_credentials
from tests.security.limited import limited, require_orderly
from tests.security.test_local_user import ALICE, alices, database_of

__all__ = ["alices"]

two_users = pytest.mark.skipif(os.geteuid() != 0, reason="needs two users")

SECRETS = {
    "AWS_ACCESS_KEY_ID": "secret-1",
    "AWS_SECRET_ACCESS_KEY": "secret-2",
    "AWS_SESSION_TOKEN": "secret-3",
    "AWS_PROFILE": "secret-4",
    "AWS_WEB_IDENTITY_TOKEN_FILE": "/secret-5",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN": "secret-6",
    "LITESTREAM_SECRET_ACCESS_KEY": "secret-7",
}
CURIOUS = """
env > "$1"
for name in environ maps mem; do
    head -c 0 "/proc/$PPID/$name" 2>/dev/null && echo "SEES_PARENT_$name=1" >> "$1"
done
exit 0
"""
"""A program that writes down what it sees of its own environment, and of the process that started it."""


@two_users
@pytest.mark.slow
@pytest.mark.parametrize("withheld", ["by option", "by key", "no"])
def test_program_of_exec_sees_no_credentials_if_they_are_withheld(alices: Path, withheld: str) -> None:
    database = database_of(alices)
    program, seen = alices / "curious.sh", alices / "seen"
    program.write_text(CURIOUS)
    config = alices / "litereplica.yml"
    key = {"exec-without-credentials": True} if withheld == "by key" else {}
    command = f"/bin/sh {program} {seen}"
    config.write_text(
        json.dumps({"dbs": [{"path": str(database), "replica": {"path": f"{alices}/replica"}}], "exec": command} | key)
    )
    option = ["--exec-without-credentials"] if withheld == "by option" else []
    environment = {"PATH": os.environ["PATH"], "AWS_REGION": "here", "OTHER": "x", **SECRETS}
    ended = limited("replicate", "-c", config, *option, as_user=ALICE, environment=environment)
    require_orderly(ended)
    found = dict(line.split("=", 1) for line in seen.read_text().splitlines())
    assert (found["OTHER"], found["AWS_REGION"]) == ("x", "here")
    sees_parent = [name for name in found if name.startswith("SEES_PARENT")]
    if withheld == "no":  # control: it can see what is looked for
        assert SECRETS.items() <= found.items()
        assert "SEES_PARENT_environ" in sees_parent
        return
    assert not [value for value in found.values() if "secret" in value]
    assert not sees_parent


def test_variables_of_any_name_that_hold_a_credential_in_use_are_withheld() -> None:
    pairs = [Credentials("key-1", "secret-1"), Credentials("key-2", "secret-2", "token-2")]
    held = {"TENANT_KEY": "key-1", "TENANT_SECRET": "secret-1\n", "B": "secret-2", "TOKEN": "token-2"}
    others = {"EMPTY": "", "PATH": "/bin", "AWS_REGION": "here", "MENTIONS": "secret-12"}
    assert without_credentials({**others, **SECRETS, **held}, pairs) == others
