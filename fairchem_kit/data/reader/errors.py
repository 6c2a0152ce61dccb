"""Errors of the reader. Messages name file and record and say what to do."""

from __future__ import annotations

from fairchem_kit.data.errors import DataError


class RecordError(DataError):
    """A file or a record that cannot be used.

    It can be built from the message alone, so it can be passed from a data worker to the main
    process; its attributes are None there.

    Attributes:
        file: path. key: of the record in the file, None for the file itself. kind: a short name of
            the fault. reason: the message without file, key and advice.
    """

    def __init__(
        self,
        message: str,
        *,
        file: str | None = None,
        key: str | None = None,
        kind: str | None = None,
        reason: str | None = None,
    ) -> None:
        super().__init__(message)
        self.file = file
        self.key = key
        self.kind = kind
        self.reason = reason


class TooManyBadRecords(RecordError):
    """More bad records than ``max_bad_records``, or no good record as a replacement."""


class Refused(ValueError):
    """A fault of a file's page or of a record: its kind and the reason, without the place."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind
        self.reason = reason
