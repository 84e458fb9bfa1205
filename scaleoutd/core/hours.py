# SPDX-License-Identifier: Apache-2.0
"""The hours of a policy: when a run may begin, in the site's own time.

    Mon-Fri 18:00-06:00     Sat,Sun 00:00-24:00     daily 20:00-23:30

A window that ends before it begins goes on into the next day, and its days are those on which it begins.  A run that has begun
may end outside.  The local time is a value; whoever calls knows the zone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from scaleoutd.errors import FormatError, PolicyDeniedError

DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_DAY = f"(?:{'|'.join(DAYS)})"
_SPAN = f"{_DAY}(?:-{_DAY})?"
PATTERN = rf"(?:daily|{_SPAN}(?:,{_SPAN})*) [0-2][0-9]:[0-5][0-9]-[0-2][0-9]:[0-5][0-9]"
DAY_MINUTES = 24 * 60


@dataclass(frozen=True)
class LocalTime:
    """`weekday` from Monday, 0; `minute` of the day; `zone` for people."""

    weekday: int
    minute: int
    zone: str

    def __str__(self) -> str:
        return f"{DAYS[self.weekday]} {self.minute // 60:02d}:{self.minute % 60:02d} {self.zone}"


@dataclass(frozen=True)
class Window:
    days: frozenset[int]
    begin: int  # minute of the day
    end: int  # not included

    def holds(self, time: LocalTime) -> bool:
        if self.begin < self.end:
            return time.weekday in self.days and self.begin <= time.minute < self.end
        late = time.weekday in self.days and time.minute >= self.begin
        return late or ((time.weekday - 1) % 7 in self.days and time.minute < self.end)


def parse_window(text: str) -> Window:
    """FormatError `record-invalid` for what is not of the form above."""
    if not re.fullmatch(PATTERN, text):
        raise _refuse(text, "expected days and hours such as Mon-Fri 18:00-06:00")
    days, _, hours = text.partition(" ")
    begin, end = (int(part[:2]) * 60 + int(part[3:]) for part in hours.split("-"))
    if begin >= DAY_MINUTES or end > DAY_MINUTES:
        raise _refuse(text, "a day has 24 hours")
    if begin == end:
        raise _refuse(text, "it begins when it ends; the whole day is 00:00-24:00")
    return Window(frozenset(_days(days)), begin, end)


def check_hours(hours: Sequence[str], time: LocalTime) -> None:
    """PolicyDeniedError `outside-hours` when there are hours and none of them holds `time`."""
    if hours and not any(parse_window(text).holds(time) for text in hours):
        raise PolicyDeniedError(
            f"cannot run now: it is {time}, the policy allows {'; '.join(hours)}",
            code="outside-hours",
            hint="Wait for the hours, or change budget.hours (and budget.time_zone) in the policy.",
        )


def _days(text: str) -> Iterator[int]:
    if text == "daily":
        yield from range(7)
        return
    for span in text.split(","):
        first, _, last = span.partition("-")
        begin = DAYS.index(first)
        yield from ((begin + more) % 7 for more in range((DAYS.index(last or first) - begin) % 7 + 1))


def _refuse(text: str, cause: str) -> FormatError:
    return FormatError(f"cannot read the hours {text[:64]!r}: {cause}", code="record-invalid")
