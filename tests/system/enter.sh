#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# enter.sh FOLDER ROOT NAME [OPTION...]: boots a container over the image ROOT (container.py).  It is the first process of a pid
# namespace and has a mount namespace of its own, so its end is the end of all that it started and mounted.
set -eu
folder=$1 root=$2 name=$3
shift 3
mount -t tmpfs -o mode=755 run /run # systemd-nspawn keeps its own things there

over() {
    mount -t overlay -o "lowerdir=$root,upperdir=$1/upper,workdir=$1/work" overlay "$folder/root"
}
if ! over "$folder" 2>/dev/null; then # the folder lies on an overlay itself: what the guest writes is kept in memory
    mount -t tmpfs -o mode=755 memory "$folder/memory"
    cp -a "$folder/upper" "$folder/work" "$folder/memory"
    over "$folder/memory"
fi

# Goes into cgroups of the guest's own.  With v2 they lie below the root cgroup: any other that has processes, as that of a shell
# has, may not hand controllers down.
into_cgroups() {
    if [ -f /sys/fs/cgroup/cgroup.controllers ]; then
        for controller in cpu memory pids; do
            echo "+$controller" >/sys/fs/cgroup/cgroup.subtree_control 2>/dev/null || true # most often it is there
        done
        enter_cgroup "/sys/fs/cgroup/$name"
        return
    fi
    while IFS=: read -r _ controller path; do
        controller=${controller#name=}
        case ${controller:=unified} in
        memory | pids | cpu | cpuacct | devices | blkio | systemd | unified)
            enter_cgroup "/sys/fs/cgroup/$controller${path%/}/$name"
            ;;
        esac
    done </proc/self/cgroup
}
enter_cgroup() {
    if [ -d "${1%/*}" ]; then
        mkdir -p "$1"
        echo "$1" >>"$folder/cgroups"
        echo 0 >"$1/cgroup.procs"
    fi
}

# With v1 systemd-nspawn gives the controllers read-only: init-v1 binds them again for writing, so that the limits of units hold.
if [ -f /sys/fs/cgroup/cgroup.controllers ]; then
    set -- "$@" --boot
else
    set -- "$@" /usr/local/sbin/init-v1
fi
status=133 # what systemd-nspawn ends with when the guest reboots
while [ $status = 133 ]; do
    status=0
    (
        into_cgroups
        exec systemd-nspawn --quiet --directory="$folder/root" --machine="$name" --register=no --keep-unit --private-network \
            --bind="$folder/line:/run/guest" --link-journal=no --resolv-conf=off --timezone=off \
            --system-call-filter="landlock_create_ruleset landlock_add_rule landlock_restrict_self @keyring bpf perf_event_open openat2" \
            "$@"
    ) || status=$?
done
exit $status
