# SPDX-License-Identifier: Apache-2.0
"""The time as a value, and the floors below which neither time nor versions may fall.

Rules (DESIGN.md section 3; design-review F16, F17):
  1. Whoever needs the time gets a `Now` from its caller; nothing here reads a clock.
  2. A clock more than `MAX_SET_BACK_MS` below the latest time on record refuses: else an expired manifest lives again.
  3. A clock that is not synchronised never raises the time floor: a clock set far ahead would burn it.
  4. Runner and ledger both keep floors; the higher one counts, field by field.
  5. With the version of the trust root goes its digest: another root of the same version is no newer one.  Where the two rooms
     know different roots of one version nobody can say which was accepted, so nothing runs until a person has (`trust reset`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

from scaleoutd.errors import VerificationError

MAX_SET_BACK_MS = 5 * 60 * 1000
DAY_MS = 24 * 60 * 60 * 1000


@dataclass(frozen=True)
class Now:
    """Wall clock in Unix milliseconds, a monotonic clock in milliseconds, and whether the wall clock is synchronised."""

    wall_ms: int
    monotonic_ms: int
    synchronised: bool


class FloorsLike(Protocol):
    """What `Floors` here and the ledger's message of the same name have in common."""

    @property
    def time_ms(self) -> int: ...

    @property
    def root_version(self) -> int: ...

    @property
    def root_sha256(self) -> str: ...

    @property
    def manifest_versions(self) -> Mapping[str, int]: ...


@dataclass(frozen=True)
class Floors:
    """The latest time and the highest versions that were ever accepted; `manifest_versions` by project name.

    `root_sha256` is the digest of the root of `root_version`, "" where only the version is known.
    """

    time_ms: int = 0
    root_version: int = 0
    manifest_versions: Mapping[str, int] = field(default_factory=dict)
    root_sha256: str = ""


def highest(one: FloorsLike, other: FloorsLike) -> Floors:
    """The maximum of both, field by field; VerificationError when they know two roots of one version."""
    versions = dict(one.manifest_versions)
    for project, version in other.manifest_versions.items():
        versions[project] = max(version, versions.get(project, 0))
    root_version, root_sha256 = _highest_root(one, other)
    return Floors(max(one.time_ms, other.time_ms), root_version, versions, root_sha256)


def _highest_root(one: FloorsLike, other: FloorsLike) -> tuple[int, str]:
    if one.root_version != other.root_version:
        higher = max(one, other, key=lambda floors: floors.root_version)
        return higher.root_version, higher.root_sha256
    if one.root_sha256 and other.root_sha256 and one.root_sha256 != other.root_sha256:
        raise VerificationError(
            f"cannot trust the root of trust: two roots of version {one.root_version} are on record as accepted,"
            f" {one.root_sha256} and {other.root_sha256}",
            code="trust-root-invalid",
            hint="Find out which one is right; then `scaleoutctl trust reset --reason TEXT`.",
            facts={"expected": one.root_sha256, "found": other.root_sha256},
        )
    return one.root_version, one.root_sha256 or other.root_sha256


def raised(
    floors: FloorsLike,
    now: Now,
    *,
    root_version: int = 0,
    root_sha256: str = "",
    project: str = "",
    manifest_version: int = 0,
) -> Floors:
    """The floors after something was accepted at `now`; the time rises only with a synchronised clock."""
    time_ms = max(floors.time_ms, now.wall_ms) if now.synchronised else floors.time_ms
    accepted = Floors(time_ms, root_version, {project: manifest_version} if project else {}, root_sha256)
    return highest(replace(highest(floors, Floors()), time_ms=time_ms), accepted)


def check_clock(now: Now, floors: FloorsLike) -> None:
    """VerificationError `clock-set-back` when the clock lies more than five minutes before a time already seen."""
    behind_ms = floors.time_ms - now.wall_ms
    if behind_ms > MAX_SET_BACK_MS:
        raise VerificationError(
            f"cannot trust the clock: it shows {utc_text(now.wall_ms)}, expected no earlier than"
            f" {utc_text(floors.time_ms)}, a time that is already on record",
            code="clock-set-back",
            hint="Set the clock right (`timedatectl`). If the time on record is the wrong one:"
            " `scaleoutctl trust reset --clock --reason TEXT`.",
            facts={"expected": f"{utc_text(floors.time_ms)} or later", "found": utc_text(now.wall_ms)},
        )


def utc_text(time_ms: int) -> str:
    """`2026-01-31T23:59:59Z` for Unix milliseconds; proleptic Gregorian, no leap seconds, as Unix time has none."""
    days, second = divmod(time_ms // 1000, 86_400)
    # Days to a civil date by the 400-year cycle (146,097 days) counted from 1 March of year 0.
    era, day_of_era = divmod(days + 719_468, 146_097)
    year_of_era = (day_of_era - day_of_era // 1460 + day_of_era // 36_524 - day_of_era // 146_096) // 365
    day_of_year = day_of_era - (365 * year_of_era + year_of_era // 4 - year_of_era // 100)
    month_from_march = (5 * day_of_year + 2) // 153
    day = day_of_year - (153 * month_from_march + 2) // 5 + 1
    month = month_from_march + 3 if month_from_march < 10 else month_from_march - 9
    year = year_of_era + era * 400 + (1 if month <= 2 else 0)
    return f"{year:04d}-{month:02d}-{day:02d}T{second // 3600:02d}:{second % 3600 // 60:02d}:{second % 60:02d}Z"
