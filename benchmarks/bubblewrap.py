# SPDX-License-Identifier: Apache-2.0
"""bubblewrap with what it can do of the sandbox of a plan, for benchmarks/sandbox.py to compare with (bwrap(1)).

The command line is made from the view that our launcher would build for the same plan, so both mount the same things: the
binds, devices, sized tmpfs, scratch, files of /etc, links, /proc, a root that is read-only in the end.  Both have namespaces of
their own, no capability, a session of their own, an environment from nothing, our compiled filter, and end with their parent.

Not in it, because bubblewrap has no such thing: noexec mounts, Landlock, a cgroup and its limits, rlimits, the wall clock, a
watched scratch folder, bounded output, calls that are counted (without a listener the kernel answers them ENOSYS), a uid of the
step's own on the host (it maps the uid inside a user namespace), and any look at what came out.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from typing import IO

from scaleoutd.core.plan import SandboxPlan
from scaleoutd.step import confine, seccomp, view

PROGRAM = "bwrap"


def missing() -> str:
    """Why there is no such column; "" when there is one.  A start that is refused is no reason: it is an error."""
    return "" if shutil.which(PROGRAM) else "bubblewrap is not installed; tools/setup.sh bench installs it"


def _holding(content: bytes) -> IO[bytes]:
    file = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the sandbox that is made from it
    file.write(content)
    file.flush()
    return file


class Bubblewrap:
    """A plan as a bwrap command line; `start` may be called often."""

    def __init__(self, plan: SandboxPlan) -> None:
        identity = confine.identity_of(plan)
        sight = view.of_plan(plan, identity.uid, identity.gid)
        self._sources = [_holding(seccomp.load().step)]
        words = [
            "--unshare-all", "--die-with-parent", "--new-session", "--cap-drop", "ALL", "--hostname", "step",
            "--uid", str(identity.uid), "--gid", str(identity.gid), "--seccomp", str(self._sources[0].fileno()),
        ]  # fmt: skip
        for tmpfs in sight.tmpfs:
            words += ["--perms", "1777", "--size", str(tmpfs.size_bytes), "--tmpfs", tmpfs.target]
        for path, target in sight.links:
            words += ["--symlink", target, path]
        for file in sight.files:
            self._sources.append(_holding(file.content.encode()))
            words += ["--file", str(self._sources[-1].fileno()), file.path]
        kinds = {view.READ_ONLY: "--ro-bind", view.WRITABLE: "--bind", view.DEVICE: "--dev-bind"}
        for attach in sight.attach:
            kind = kinds.get(attach.attributes, "--ro-bind")  # bubblewrap has no noexec
            words += [kind + ("-try" if attach.optional else ""), attach.source, attach.target]
        words += ["--proc", "/proc", "--remount-ro", "/", "--chdir", plan.cwd, "--clearenv"]
        for name, value in plan.environment.items():
            words += ["--setenv", name, value]
        self._words = [*words, "--", *plan.command]

    def run(self, output: IO[bytes]) -> int:
        """Until its end: the pid of its pid 1, which bubblewrap does not wait for.  CalledProcessError when it was refused."""
        for source in self._sources:
            os.lseek(source.fileno(), 0, os.SEEK_SET)  # the offset is shared with the bwrap before
        descriptors = [source.fileno() for source in self._sources]
        with tempfile.TemporaryFile() as told:
            command = [PROGRAM, "--info-fd", str(told.fileno()), *self._words]
            subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stdout=output, pass_fds=[*descriptors, told.fileno()])
            told.seek(0)
            return int(json.load(told)["child-pid"])

    def close(self) -> None:
        for source in self._sources:
            source.close()
