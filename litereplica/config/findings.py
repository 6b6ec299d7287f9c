"""What is to be said about a configuration: errors, of which all are shown in one run, and remarks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from litereplica.errors import ConfigurationErrors, UsageError


class Findings:
    """Collects errors, `notes` about keys without effect, and `former` keys with what to write instead."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.former: list[str] = []
        self._errors: list[UsageError] = []

    @contextmanager
    def caught(self) -> Iterator[None]:
        """Keep a `UsageError` of the block for `require_none`."""
        try:
            yield
        except UsageError as exc:
            self._errors.append(exc)

    @property
    def errors(self) -> int:
        """The number of errors so far."""
        return len(self._errors)

    def require_none(self) -> None:
        """Raise the error, or `ConfigurationErrors` if there are several."""
        if len(self._errors) > 1:
            raise ConfigurationErrors(self._errors)
        if self._errors:
            raise self._errors[0]
