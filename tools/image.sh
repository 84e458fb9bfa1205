#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Makes the root image of a Debian that the booted tests start (tests/system), and prints the folder it lies in.
#
#   tools/image.sh [-m] [bookworm | bookworm-backports | trixie]
#
#   FOLDER/root        a root folder, for systemd-nspawn
#   FOLDER/machine/    with -m: vmlinux, initrd, root.img from the same root, for QEMU
#
# bookworm (Debian 12, systemd 252) is meant where none is named; bookworm-backports is the same with systemd 254 and nothing else
# of the backports; trixie is Debian 13 with systemd 257.
#
# Each is made once and kept under ${XDG_CACHE_HOME:-~/.cache}/scaleoutd/images, keyed by this file (so by its package list) and
# the suite.  Nothing ever writes to them: a container puts an overlay above, a machine a snapshot.  Packages come from the apt
# sources of this machine: from its files that name the suite, or, where none does, from those for bookworm with this suite's name in
# them (a mirror has all suites under one address).  IMAGE_SOURCES=FILE names others.  Needs root, mmdebstrap, and for -m
# e2fsprogs, cpio, lz4, xz, zstd.
set -euo pipefail

# What boots, what the deb depends on, and what tests look with.  Nothing of the project is in the image.
boot="systemd systemd-sysv dbus udev kmod libpam-systemd apparmor auditd busybox-static"
depends="adduser python3 python3-cryptography python3-yaml python3-numpy libseccomp2"
look="procps util-linux iproute2 openssl acl attr debsums man-db needrestart libcap2-bin"

machine=
if [ "${1:-}" = -m ]; then
    machine=yes
    shift
fi
suite=${1:-bookworm}
case $suite in
bookworm | bookworm-backports | trixie) ;;
*)
    echo "image: $suite is no suite of which images are made: bookworm, bookworm-backports, trixie" >&2
    exit 1
    ;;
esac

if [ "$(id -u)" != 0 ]; then
    echo "image: only root can make an image with the owners that a system has" >&2
    exit 1
fi
images=${XDG_CACHE_HOME:-$HOME/.cache}/scaleoutd/images
image=$images/$(sha256sum "$0" | cut -c1-16)-$suite
mkdir -p "$images"
# Sessions that start at the same time make it once.
exec 9>"$images/.lock"
flock 9

work=$(mktemp -d "$images/.making.XXXXXX")
trap 'rm -rf "$work"' EXIT

# The machine's own files of sources that name suite $1.
files_of() {
    grep -lsE "^(Suites:|deb )[^#]*\b$1\b" /etc/apt/sources.list /etc/apt/sources.list.d/*.list /etc/apt/sources.list.d/*.sources
}

# The files of sources for the image: the machine's own as they are, or copies of bookworm's in which the suite is named.
sources() {
    local file copy change own
    if [ -n "${IMAGE_SOURCES:-}" ]; then
        echo "$IMAGE_SOURCES"
        return
    fi
    own=$(files_of "$suite" || true) # grep also complains of files that are not there
    if [ -n "$own" ] && [ "$suite" != bookworm-backports ]; then
        echo "$own"
        return
    fi
    mkdir "$work/sources"
    files_of bookworm | while read -r file; do
        case $suite:$file in
        trixie:*) change="s/bookworm/trixie/g" ;;
        # Backports stand beside the suite; in a .list each has a line of its own.
        *.list) change='/bookworm-backports/d; / bookworm /{p; s/ bookworm / bookworm-backports /}' ;;
        *) change='/^Suites:/{s/ bookworm-backports//; s/ bookworm( |$)/ bookworm bookworm-backports\1/}' ;;
        esac
        copy=$work/sources/$(basename "$file")
        sed -E "$change" "$file" >"$copy"
        echo "$copy"
    done
}

make_root() {
    local files
    mapfile -t files < <(sources)
    if [ ${#files[@]} = 0 ]; then
        echo "image: no apt source of this machine has $suite or bookworm; name a file with one in IMAGE_SOURCES" >&2
        exit 1
    fi
    if [ "$suite" = bookworm-backports ]; then
        printf 'Package: src:systemd\nPin: release n=bookworm-backports\nPin-Priority: 990\n' >"$work/systemd"
        set -- --setup-hook='mkdir -p "$1/etc/apt/preferences.d" && cp '"$work/systemd"' "$1/etc/apt/preferences.d/"'
    fi
    # The kernel is unpacked, not installed: its postinst would want an initramfs and a boot loader.
    cat >"$work/kernel" <<'HOOK'
#!/bin/sh
set -eu
export APT_CONFIG="$MMDEBSTRAP_APT_CONFIG"
package=$(apt-cache depends linux-image-cloud-amd64 | awk '/Depends: linux-image-[0-9]/ { print $2; exit }')
cd "$(dirname "$0")"
apt-get download -qq "$package" >/dev/null
dpkg-deb --fsys-tarfile linux-image-*.deb | tar -C "$1" --keep-directory-symlink --exclude ./usr/share -xf -
chroot "$1" depmod "$(ls "$1/lib/modules")"
HOOK
    chmod +x "$work/kernel"
    # shellcheck disable=SC2086,SC2016
    mmdebstrap --quiet --variant=minbase --format=directory \
        --include="$(echo $boot $depends $look | tr ' ' ,)" \
        --dpkgopt='path-exclude=/usr/share/locale/*' --dpkgopt='path-exclude=/usr/share/info/*' \
        --aptopt='Acquire::Languages "none"' \
        --customize-hook="$work/kernel" "$@" \
        "${suite%-backports}" "$work/root" "${files[@]}" >&2 || {
        echo "image: mmdebstrap cannot make $suite from the apt sources of this machine (${files[*]##*/})" >&2
        exit 1
    }
    settle "$work/root"
    chmod 755 "$work/root"
    mkdir "$work/image"
    mv "$work/root" "$work/image/root"
    mv "$work/image" "$image"
}

# Nothing that asks a person, waits for hardware or wakes up by itself in the middle of a test.
settle() {
    local unit
    echo guest >"$1/etc/hostname"
    printf '127.0.0.1 localhost guest\n::1 localhost\n' >"$1/etc/hosts"
    : >"$1/etc/machine-id"
    : >"$1/etc/fstab"
    mkdir -p "$1/etc/systemd/journald.conf.d"
    printf '[Journal]\nStorage=persistent\nRateLimitIntervalSec=0\nSyncIntervalSec=1s\n' >"$1/etc/systemd/journald.conf.d/guest.conf"
    for unit in apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service fstrim.timer \
        man-db.timer getty@tty1.service serial-getty@ttyS0.service getty-static.service console-getty.service \
        systemd-update-utmp.service systemd-update-utmp-runlevel.service systemd-firstboot.service systemd-pcrphase.service \
        systemd-pcrphase-sysinit.service; do
        ln -sf /dev/null "$1/etc/systemd/system/$unit"
    done
    rm -f "$1"/var/lib/apt/lists/*_* "$1"/var/cache/apt/*.bin "$1"/boot/System.map*
}

# QEMU starts an uncompressed kernel (PVH): under emulation that saves the seconds of unpacking it.
uncompressed() {
    python3 - "$1" "$2" <<'PYTHON'
import lzma, subprocess, sys
kernel = open(sys.argv[1], "rb").read()
def xz(data): return lzma.LZMADecompressor().decompress(data)
def program(*argv): return lambda data: subprocess.run(argv, input=data, capture_output=True).stdout
for magic, unpack in ((b"\xfd7zXZ\0", xz), (b"\x28\xb5\x2f\xfd", program("zstd", "-dcq")), (b"\x02\x21\x4c\x18", program("lz4", "-dcq"))):
    at = kernel.find(magic)
    while at >= 0:
        try:
            found = unpack(kernel[at:])
        except lzma.LZMAError:
            found = b""
        if found.startswith(b"\x7fELF"):
            open(sys.argv[2], "wb").write(found)
            sys.exit()
        at = kernel.find(magic, at + 1)
sys.exit("image: no ELF in the kernel image")
PYTHON
}

# busybox, the modules that the root disk needs in their order, and a copy of what a test puts at /seed in front of switch_root.
make_initrd() {
    local root=$1 version=$2 folder=$work/initrd module number=0
    mkdir -p "$folder"/{bin,dev,proc,sys,root,modules,seed}
    cp "$root/bin/busybox" "$folder/bin/busybox"
    while read -r module; do
        number=$((number + 1))
        cp "$root/lib/modules/$version/$module" "$folder/modules/$(printf %02d $number).ko"
    done < <(awk -v wanted="virtio_pci virtio_blk" '
        { split($0, part, ": *"); needs[part[1]] = part[2]; name = part[1]; sub(/.*\//, "", name); sub(/\.ko.*/, "", name); file[name] = part[1] }
        function visit(f, p, n, i) { if (f in seen) return; seen[f] = 1; n = split(needs[f], p, " "); for (i = n; i >= 1; i--) visit(p[i]); print f }
        END { n = split(wanted, w, " "); for (i = 1; i <= n; i++) if (w[i] in file) visit(file[w[i]]) }' "$root/lib/modules/$version/modules.dep")
    cat >"$folder/init" <<'INIT'
#!/bin/busybox sh
b=/bin/busybox
$b mount -t devtmpfs dev /dev; $b mount -t proc proc /proc; $b mount -t sysfs sys /sys
for module in /modules/*.ko; do $b insmod "$module"; done
n=0; while [ ! -b /dev/vda ] && [ $n -lt 100 ]; do $b sleep 0.1; n=$((n+1)); done
$b mount -t ext4 -o rw,noatime /dev/vda /root || { echo "no root disk"; $b poweroff -f; }
$b cp -a /seed/. /root/
$b mount --move /dev /root/dev; $b umount /proc /sys
exec $b switch_root /root /sbin/init
INIT
    chmod +x "$folder/init"
    (cd "$folder" && find . | cpio -o -H newc --quiet) >"$3"
}

make_machine() {
    local root=$image/root version to=$work/machine
    version=$(ls "$root/lib/modules")
    mkdir "$to"
    uncompressed "$root/boot/vmlinuz-$version" "$to/vmlinux"
    make_initrd "$root" "$version" "$to/initrd"
    mke2fs -q -F -t ext4 -E lazy_itable_init=1,root_owner=0:0 -L root -d "$root" "$to/root.img" \
        "$(($(du -sm "$root" | cut -f1) * 12 / 10 + 2048))M" >&2
    mv "$to" "$image/machine"
}

# What other versions of this file made is given up after two weeks without use.
touch -c "$image"
find "$images" -mindepth 1 -maxdepth 1 -name '????????????????*' -mtime +14 -exec rm -rf {} +

if [ ! -d "$image/root" ]; then
    echo "image: making $image (once; about half a minute)" >&2
    make_root
fi
if [ -n "$machine" ] && [ ! -d "$image/machine" ]; then
    echo "image: making $image/machine (once)" >&2
    make_machine
fi
echo "$image"
