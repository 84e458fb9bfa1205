# SPDX-License-Identifier: Apache-2.0
"""A guest on this machine's kernel: systemd as PID 1 in systemd-nspawn, over an overlay of the image.

It lives in a mount and a pid namespace of its own; the first process in there dies with the one that started it
(PR_SET_PDEATHSIG), and the kernel then takes everything else: processes, mounts, network.  So nothing of it stays,
not even after SIGKILL of pytest, but a folder and empty cgroups, which the next session removes (folder.py).
"""

from __future__ import annotations

from tests.system.guest import Guest
from tests.system.image import image, seed

# $1 is the guest's folder, $2 the image's root, $3 the name; the rest are options of systemd-nspawn.  On a host with cgroup v1,
# systemd-nspawn gives the controllers read-only: they are bound again for writing, below cgroups of the guest's own, so that
# MemoryMax=, TasksMax= and CPUQuota= of its units are in force.
ENTER = r"""
set -eu
folder=$1 root=$2 name=$3
shift 3
mount -t tmpfs -o mode=755 run /run  # systemd-nspawn keeps its own things there
over() {
    mount -t overlay -o "lowerdir=$root,upperdir=$1/upper,workdir=$1/work" overlay "$folder/root"
}
if ! over "$folder"; then  # the folder lies on an overlay itself: what the guest writes is kept in memory
    mount -t tmpfs -o mode=755 memory "$folder/memory"
    cp -a "$folder/upper" "$folder/work" "$folder/memory"
    over "$folder/memory"
fi
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
        super().__init__()
        units = self.folder / "upper/etc/systemd/system"
        for path in (units, self.folder / "work", self.folder / "root", self.folder / "memory"):
            path.mkdir(parents=True)
        (units / "auditd.service").symlink_to("/dev/null")  # a kernel has one audit daemon, and it is not ours
        seed(self.folder / "upper", {"usr/local/sbin/init-v1": INIT_V1})
        self.boot(
            *("unshare", "--mount", "--propagation=private", "--pid", "--fork", "--kill-child=KILL", "--mount-proc"),
            *("/bin/sh", "-c", ENTER, "sh", str(self.folder), str(root), self.folder.name.replace("_", "-"), *options),
        )
