# SPDX-License-Identifier: Apache-2.0
"""The time of day at the site (core.hours.LocalTime): the zone that the policy names, by the host's tzdata."""

from __future__ import annotations

import time
from datetime import datetime
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from scaleoutd.core.hours import LocalTime
from scaleoutd.errors import ConfigError


def local_time(wall_ms: int, zone: str) -> LocalTime:
    """The time of day in `zone`, a name of tzdata(7); "" is the host's own zone.  ConfigError for a zone that is not there."""
    if not zone:
        here = time.localtime(wall_ms / 1000)
        return LocalTime(here.tm_wday, here.tm_hour * 60 + here.tm_min, here.tm_zone)
    try:
        there = datetime.fromtimestamp(wall_ms / 1000, ZoneInfo(zone))
    except (ZoneInfoNotFoundError, ValueError, OSError) as exc:
        raise ConfigError(
            f"cannot tell the time in {zone[:64]!r}: there is no such time zone on this host",
            hint="Correct budget.time_zone in the policy, for example Europe/Stockholm; or install the package tzdata.",
        ) from exc
    return LocalTime(there.weekday(), there.hour * 60 + there.minute, zone)
