# SPDX-License-Identifier: Apache-2.0
"""Hours of a policy: what they hold, over midnight and the end of a week; what is no hours."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaleoutd.core.hours import DAY_MINUTES, DAYS, LocalTime, check_hours, parse_window
from scaleoutd.core.policy import Policy, parse_policy_yaml
from scaleoutd.errors import ConfigError, FormatError, PolicyDeniedError

MINIMAL = "version: 1\nproject: {name: heart, path: /srv/heart}\ntrust_root: /etc/scaleoutd/trust\n"


def at(text: str) -> LocalTime:
    day, _, hour = text.partition(" ")
    return LocalTime(DAYS.index(day), int(hour[:2]) * 60 + int(hour[3:]), "Test/Zone")


@pytest.mark.parametrize(
    ("window", "inside", "outside"),
    [
        ("Mon-Fri 08:00-18:00", ("Mon 08:00", "Fri 17:59"), ("Mon 07:59", "Fri 18:00", "Sat 12:00")),
        ("Mon-Fri 18:00-06:00", ("Mon 18:00", "Tue 05:59", "Sat 05:59"), ("Mon 05:59", "Tue 06:00", "Sat 18:00", "Sun 01:00")),
        ("Sun 22:00-02:00", ("Sun 23:00", "Mon 01:59"), ("Mon 02:00", "Mon 23:00", "Sun 01:00")),
        ("Sat,Sun 00:00-24:00", ("Sat 00:00", "Sun 23:59"), ("Fri 23:59", "Mon 00:00")),
        ("Fri-Mon 12:00-13:00", ("Fri 12:00", "Sun 12:30", "Mon 12:59"), ("Tue 12:00", "Thu 12:00")),
        ("daily 20:00-24:00", ("Wed 20:00", "Sun 23:59"), ("Wed 19:59", "Sun 00:00")),
    ],
)
def test_a_window_holds_its_hours_and_no_others(window: str, inside: tuple[str, ...], outside: tuple[str, ...]) -> None:
    for text in inside:
        check_hours([window], at(text))
    for text in outside:
        with pytest.raises(PolicyDeniedError) as caught:
            check_hours([window], at(text))
        assert caught.value.code == "outside-hours" and text in caught.value.message and window in caught.value.message


def test_one_of_several_windows_is_enough_and_none_at_all_is_always() -> None:
    check_hours(["Mon 08:00-09:00", "Tue 08:00-09:00"], at("Tue 08:30"))
    check_hours([], at("Tue 03:00"))


@pytest.mark.parametrize(
    "text",
    ["", "Mon", "08:00-09:00", "Mon 8:00-9:00", "Mon 08:00-25:00", "Mon 24:00-06:00", "Mon 08:00-08:00", "mon 08:00-09:00",
     "Mon-Fri-Sun 08:00-09:00", "Mon 08:00-24:01", "Mon 08:60-09:00", "Mon  08:00-09:00", "Mon 08:00-09:00\n", "Mon ०8:00-09:00"],
)  # fmt: skip
def test_what_is_no_hours_is_refused_with_its_place_in_the_file(text: str) -> None:
    with pytest.raises(FormatError):
        parse_window(text)
    with pytest.raises(ConfigError, match=r"budget\.hours"):
        parse_policy_yaml(f"{MINIMAL}budget:\n  hours: [{text!r}]\n".encode())


def test_control_hours_and_zone_of_a_policy() -> None:
    found: Policy = parse_policy_yaml(f"{MINIMAL}budget:\n  hours: [Mon-Fri 18:00-06:00]\n  time_zone: Europe/Berlin\n".encode())
    assert (found.budget.hours, found.budget.time_zone) == (("Mon-Fri 18:00-06:00",), "Europe/Berlin")


@given(st.integers(0, 6), st.integers(0, DAY_MINUTES - 1), st.integers(0, DAY_MINUTES - 1), st.integers(1, DAY_MINUTES))
def test_a_window_and_what_is_left_of_the_day_never_hold_the_same_minute(day: int, minute: int, begin: int, end: int) -> None:
    def text(first: int, last: int) -> str:
        return f"daily {first // 60:02d}:{first % 60:02d}-{last // 60:02d}:{last % 60:02d}"

    if begin == end or end == DAY_MINUTES:
        return
    time = LocalTime(day, minute, "z")
    assert parse_window(text(begin, end)).holds(time) != parse_window(text(end, begin or DAY_MINUTES)).holds(time) or begin == 0
