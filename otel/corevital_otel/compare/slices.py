"""What a comparison names: a store, or a part of one, as ``STORE@SINCE..UNTIL`` or ``STORE@ATTRIBUTE=VALUE``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from corevital.text import printable
from corevital_otel import conventions as names
from corevital_otel.store.reader import StoredReport, StoreError, StoreReader

MOST_ROWS: Final = 20_000
"""Requests of a slice that are compared at most, the newest."""

_PREFIX: Final = "corevital."
_SHORT: Final = {"model": names.REQUEST_MODEL}
_FORMS: Final = "write STORE, STORE@2026-01-31..2026-02-01T12:00 or STORE@engine.version=1.2"
_FORMS_WITHIN: Final = "write 2026-01-31..2026-02-01T12:00 or engine.version=1.2"
_SHOWN: Final = 100


class SliceError(ValueError):
    """A slice that cannot be read or has no requests. Its text is one line.

    Attributes:
        usage: it is wrongly written.
    """

    def __init__(self, message: str, *, usage: bool = False) -> None:
        super().__init__(message)
        self.usage = usage


@dataclass(frozen=True, slots=True)
class Slice:
    """A part of a store.

    Attributes:
        text: as it was written.
        path: the store.
        between: the first moment, and the one it ends before; None is open.
        attribute: name, full name and value, or None.
    """

    text: str
    path: Path
    between: tuple[datetime | None, datetime | None] = (None, None)
    attribute: tuple[str, str, str] | None = None

    @classmethod
    def parse(cls, text: str) -> Slice:
        """Read the written form. A path may have an ``@``: the shortest beginning that is a file is the store.

        Raises:
            SliceError: it has another form.
        """
        whole = Path(text).expanduser()
        ends = [place.start() for place in re.finditer("@", text)]
        if not ends or whole.exists():
            return cls(text, whole)
        end = next((end for end in ends if Path(text[:end]).expanduser().exists()), ends[0])
        return cls._of(text, Path(text[:end]).expanduser(), text[end + 1 :], _FORMS)

    @classmethod
    def within(cls, path: Path, text: str) -> Slice:
        """A slice of this store: ``SINCE..UNTIL`` or ``ATTRIBUTE=VALUE``; all of it where the text is empty.

        Raises:
            SliceError: it has another form.
        """
        return cls._of(text, path, text, _FORMS_WITHIN) if text else cls("everything", path)

    @classmethod
    def _of(cls, text: str, path: Path, rest: str, forms: str) -> Slice:
        name, equals, value = rest.partition("=")
        if equals:
            if not re.fullmatch(r"[\w.-]+", name):
                raise _wrong(text, "its attribute has no name", forms)
            return cls(text, path, attribute=(name, _SHORT.get(name, _PREFIX + name), value))
        first, dots, last = rest.partition("..")
        if not dots or not (first or last):
            raise _wrong(text, "neither a time span nor an attribute", forms)
        return cls(text, path, (_moment(first, text, forms), _moment(last, text, forms)))

    def read(self) -> tuple[list[StoredReport], str]:
        """Its requests, newest first, :data:`MOST_ROWS` at most, and what was wrong with rows left out; "" if none.

        First legs of disaggregated serving are left out: they generate nothing for a client. So are requests that were
        not sampled, and kept only because they are bad: the others are a fair sample.

        Raises:
            SliceError: the store cannot be read, or there are none.
        """
        reader = StoreReader(self.path)
        try:
            found = reader.list_reports(between=self.between, attribute=self.attribute, limit=MOST_ROWS)
        except StoreError as error:
            raise _unread(error) from None
        found = [report for report in found if names.ROLE not in report.summary and report.is_sampled]
        if not found:
            raise SliceError(f"{printable(self.text, _SHOWN)} has no requests: widen the slice, or serve some first")
        return found, f"{reader.damaged} damaged rows skipped ({reader.damage})" if reader.damaged else ""

    def is_exact(self) -> bool:
        """Whether all engines that wrote to the store compute in float32 on a CPU. On a GPU products may be TF32.

        Raises:
            SliceError: the store cannot be read.
        """
        try:
            found = StoreReader(self.path).resource_values
            on_cpu = found(names.RESOURCE_DEVICE + "type") == {"cpu"}
            return on_cpu and found(names.RESOURCE_ENGINE + "dtype") == {"float32"}
        except StoreError as error:
            raise _unread(error) from None


def _unread(error: StoreError) -> SliceError:
    return SliceError(str(error).replace(", or name it with --db", "").replace(" with --db", ""))


def _moment(text: str, whole: str, forms: str) -> datetime | None:
    """A moment in ISO 8601, UTC where it names no offset; None where there is no text."""
    if not text:
        return None
    try:
        found = datetime.fromisoformat(text)
        return (found if found.tzinfo else found.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        raise _wrong(whole, f"{printable(text, 40)!r} is not a time in ISO 8601", forms) from None


def _wrong(text: str, why: str, forms: str) -> SliceError:
    return SliceError(f"{printable(text, _SHOWN)!r} is not a slice ({why}): {forms}", usage=True)
