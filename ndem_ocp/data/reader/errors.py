"""What the reader raises. Messages name file and record, and the way out."""

from __future__ import annotations

from ndem_ocp.data.errors import DataError


class RecordError(DataError):
    """A file or a record that cannot be used.

    One message is enough to build it, so that it survives the way from a data worker to the main
    process; the attributes do not (they are None there).

    Attributes:
        file: path. key: of the record in the file, None for the file itself. kind: a short word for
            the fault. reason: the message without file, key and way out.
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
    """More bad records than ``max_bad_records`` allows to skip, or none that could stand in."""


class Refused(ValueError):
    """One fault of a file's page or of a record: its kind and the reason, nothing about where."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind
        self.reason = reason
