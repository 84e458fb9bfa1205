# SPDX-License-Identifier: Apache-2.0
"""A guest on this machine's kernel: systemd as PID 1 in systemd-nspawn, over an overlay of the image.

It lives in a mount and a pid namespace of its own; the first process in there dies with the one that started it
(PR_SET_PDEATHSIG), and the kernel then takes everything else: processes, mounts, network.  So nothing of it stays,
not even after SIGKILL of pytest, but a folder and empty cgroups, which the next session removes (folder.py).
"""

from __future__ import annotations

from tests.system.guest import Guest
from tests.system.image import BOOKWORM, TREE, image, seed

INIT_V1 = """\
#!/bin/sh
for controller in memory pids cpu cpuacct devices blkio; do
    mount -o remount,rw,bind /sys/fs/cgroup/$controller 2>/dev/null
done
exec /usr/lib/systemd/systemd "$@" SYSTEMD_CGROUP_ENABLE_LEGACY_FORCE=1
"""


class Container(Guest):
    """One booted container of a suite.  `options` are more options of systemd-nspawn."""

    def __init__(self, *options: str, suite: str = BOOKWORM) -> None:
        root = image(suite=suite) / "root"
        super().__init__(suite)
        units = self.folder / "upper/etc/systemd/system"
        for path in (units, self.folder / "work", self.folder / "root", self.folder / "memory"):
            path.mkdir(parents=True)
        for unit in ("auditd.service", "audit-rules.service"):  # a kernel has one audit daemon, and it is not ours
            (units / unit).symlink_to("/dev/null")
        seed(self.folder / "upper", {"usr/local/sbin/init-v1": INIT_V1})
        name = self.folder.name.replace("_", "0")  # as systemd-nspawn wants it, and the cgroups
        self.boot(
            *("unshare", "--mount", "--propagation=private", "--pid", "--fork", "--kill-child=KILL", "--mount-proc"),
            *(
                "/bin/sh",
                str(TREE / "tests/system/enter.sh"),
                str(self.folder),
                str(root),
                name,
                *options,
            ),
        )
