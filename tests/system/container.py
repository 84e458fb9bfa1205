# SPDX-License-Identifier: Apache-2.0
"""A guest on this machine's kernel: systemd as PID 1 in systemd-nspawn, over an overlay of the image.

It lives in a mount and a pid namespace of its own; the first process in there dies with the one that started it
(PR_SET_PDEATHSIG), and the kernel then takes everything else: processes, mounts, network.  So nothing of it stays,
not even after SIGKILL of pytest, but a folder and empty cgroups, which the next session removes (`remove_left`).
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import tempfile
import threading
import time
from pathlib import Path

from tests.system.guest import Guest
from tests.system.image import image, seed

PREFIX = "scaleoutd-guest-"
# $1 is the guest's folder, $2 the image's root, $3 the name; the rest are options of systemd-nspawn.  On a host with cgroup v1,
# systemd-nspawn gives the controllers read-only: they are bound again for writing, below cgroups of the guest's own, so that
# MemoryMax=, TasksMax= and CPUQuota= of its units are in force.
ENTER = r"""
set -eu
folder=$1 root=$2 name=$3
shift 3
mount -t tmpfs -o mode=755 run /run  # systemd-nspawn keeps its own things there
mount -t overlay -o "lowerdir=$root,upperdir=$folder/upper,workdir=$folder/work" overlay "$folder/root"
set -- --quiet --directory="$folder/root" --machine="$name" --register=no --keep-unit --private-network \
    --bind="$folder/line:/run/guest" --link-journal=no --resolv-conf=off --timezone=off "$@" \
    --system-call-filter="landlock_create_ruleset landlock_add_rule landlock_restrict_self @keyring bpf perf_event_open openat2"
while IFS=: read -r number controller path; do
    controller=${controller#name=}
    case ${controller:=unified} in memory | pids | cpu | cpuacct | devices | blkio | systemd | unified) ;; *) continue ;; esac
    if [ -f /sys/fs/cgroup/cgroup.controllers ]; then mounted=/sys/fs/cgroup; else mounted=/sys/fs/cgroup/$controller; fi
    cgroup=$mounted${path%/}/$name
    if [ -d "$mounted" ] && mkdir "$cgroup"; then
        echo "$cgroup" >>"$folder/cgroups"
        echo 0 >"$cgroup/cgroup.procs"
    fi
done </proc/self/cgroup
if [ -f /sys/fs/cgroup/cgroup.controllers ]; then
    set -- "$@" --boot
else
    set -- "$@" /usr/local/sbin/init-v1
fi
status=133  # what it ends with when the guest reboots
while [ $status = 133 ]; do
    status=0
    systemd-nspawn "$@" || status=$?
done
exit $status
"""
INIT_V1 = """\
#!/bin/sh
for controller in memory pids cpu cpuacct devices blkio; do
    mount -o remount,rw,bind /sys/fs/cgroup/$controller 2>/dev/null
done
exec /usr/lib/systemd/systemd "$@"
"""


class Container(Guest):
    """One booted container.  `options` are more options of systemd-nspawn."""

    def __init__(self, *options: str) -> None:
        root = image() / "root"
        remove_left()
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir="/var/tmp"))
        # Held by this process alone, so that its end, however it comes, tells the next session that the folder is nobody's.
        self._lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        for name in ("upper", "work", "root"):
            (folder / name).mkdir(mode=0o755)
        (folder / "upper/etc/systemd/system").mkdir(parents=True)
        (folder / "upper/etc/systemd/system/auditd.service").symlink_to("/dev/null")  # the kernel has one audit daemon, not ours
        seed(folder / "upper", {"usr/local/sbin/init-v1": INIT_V1})
        super().__init__(folder)
        with open(folder / "console", "wb") as console:
            self._process = subprocess.Popen(
                [
                    *("setpriv", "--pdeathsig=KILL"),
                    *("unshare", "--mount", "--propagation=private", "--pid", "--fork", "--kill-child=KILL", "--mount-proc"),
                    *("/bin/sh", "-c", ENTER, "sh", str(folder), str(root), folder.name.replace("_", "-"), *options),
                ],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=subprocess.STDOUT,
            )
        threading.Thread(target=self._watch, daemon=True).start()
        try:
            self.wait_ready()
        except BaseException:
            self.close()
            raise

    def _watch(self) -> None:
        self._process.wait()
        self.lose()

    def reboot(self) -> None:
        boots = self._ready
        self.start("systemctl reboot")
        self.wait_ready(boots + 1)

    def close(self) -> None:
        super().close()
        self._process.kill()
        self._process.wait()
        remove(self.folder)
        os.close(self._lock)


def remove(folder: Path) -> None:
    """Removes a dead guest's cgroups and its folder."""
    listed = folder / "cgroups"
    cgroups = [Path(line) for line in listed.read_text().splitlines()] if listed.exists() else []
    end_s = time.monotonic() + 10
    for cgroup in cgroups:
        # The kernel empties the cgroups of killed processes a moment after they are gone; nothing can be waited for in v1.
        while cgroup.exists():
            try:
                for path, _, _ in os.walk(cgroup, topdown=False):
                    os.rmdir(path)
            except OSError:
                assert time.monotonic() < end_s, f"{cgroup} still has processes: {(cgroup / 'cgroup.procs').read_text()}"
                time.sleep(0.01)
    shutil.rmtree(folder)


def remove_left() -> None:
    """Removes what guests left whose session was killed: the lock on their folder is free."""
    for folder in Path("/var/tmp").glob(f"{PREFIX}*"):
        try:
            fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            remove(folder)
        except BlockingIOError:
            pass
        finally:
            os.close(fd)
