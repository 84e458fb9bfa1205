# SPDX-License-Identifier: Apache-2.0
"""What the trail has seen: highest manifest version by project, highest root version with its digest, latest time.

A state machine over the trail's own events, so it is the same after a restart, and there is no file beside the trail that
could be put back.  Each segment but the first opens with `floors-noted`, so reading one segment is enough.

Time (DESIGN.md section 3; design-review F17):
  `reference_ms` latest time since the clock was last set back on record; a step back from it is an event
  `time_ms`      the floor that the runner asks for: never falls but by `clock-floor-lowered`, and a jump ahead of more than a
                 day raises it only when the clock was synchronised
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from scaleoutd.core.clock import DAY_MS, MAX_SET_BACK_MS

PROJECTS_A_NOTE = 16  # with names of 128 characters a line keeps below its limit, so nothing is ever shortened
MAX_PROJECTS = 256
_PROJECT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@+-]{0,127}")


class Floors:
    """Apply every event of the trail in order."""

    def __init__(self) -> None:
        self.time_ms = 0
        self.reference_ms = 0
        self.root_version = 0
        self.root_sha256 = ""
        self.manifest_versions: dict[str, int] = {}

    def apply(self, type_: str, body: Mapping[str, Any], time_ms: int) -> None:
        if type_ == "clock-set-back":
            self.reference_ms = time_ms
        self.reference_ms = max(self.reference_ms, time_ms)
        if type_ == "clock-floor-lowered":
            self.time_ms = int(body["to_ms"])
        elif not self.is_jump(time_ms) or (type_ == "clock-jumped" and body["clock_synchronised"]):
            self.time_ms = max(self.time_ms, time_ms)
        if type_ == "manifest-verified":
            self._raise(str(body["project"]), int(body["manifest_version"]))
        if type_ in ("manifest-verified", "trust-root-accepted", "floors-noted"):
            # A manifest says the version only: development roots are not pinned, and are made anew under the same number.
            sha256 = "" if type_ == "manifest-verified" else str(body.get("root_sha256", ""))
            self._raise_root(int(body.get("root_version", 0)), sha256)
        if type_ == "trust-root-reset":
            self.root_version, self.root_sha256 = int(body["root_version"]), str(body["root_sha256"])
        if type_ == "floors-noted":
            self.time_ms = max(self.time_ms, int(body["time_ms"]))
            for project, version in body["manifest_versions"].items():
                self._raise(project, int(version))

    def is_jump(self, time_ms: int) -> bool:
        """Whether `time_ms` lies so far ahead of the floor that an unsynchronised clock must not raise it."""
        return self.time_ms > 0 and time_ms > self.time_ms + DAY_MS

    def is_set_back(self, time_ms: int) -> bool:
        return time_ms < self.reference_ms - MAX_SET_BACK_MS

    def notes(self, epoch: int) -> Iterator[dict[str, Any]]:
        """Bodies of the `floors-noted` events that carry these floors into the next segment; at least one."""
        projects = sorted(self.manifest_versions)
        for start in range(0, max(1, len(projects)), PROJECTS_A_NOTE):
            part = projects[start : start + PROJECTS_A_NOTE]
            yield {
                "time_ms": self.time_ms,
                "root_version": self.root_version,
                **({"root_sha256": self.root_sha256} if self.root_sha256 else {}),
                "epoch": epoch,
                "manifest_versions": {project: self.manifest_versions[project] for project in part},
            }

    def _raise_root(self, version: int, sha256: str) -> None:
        if version > self.root_version:
            self.root_version, self.root_sha256 = version, sha256
        elif version == self.root_version and not self.root_sha256:
            self.root_sha256 = sha256

    def _raise(self, project: str, version: int) -> None:
        # The name comes from another room; what is no name of a project has no floor (and could not be noted).
        if _PROJECT.fullmatch(project) and (project in self.manifest_versions or len(self.manifest_versions) < MAX_PROJECTS):
            self.manifest_versions[project] = max(version, self.manifest_versions.get(project, 0))
