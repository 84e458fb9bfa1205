#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Makes .venv from hash-locked requirements; with "official" what only the tests need: .venv-official (the official client),
# .venv-steps (its library beside the system's numpy and torch, for steps) and .venv-model-signing (OpenSSF model-signing, the control
# of what it lets pass); with "system" what the booted tests need: systemd-nspawn, QEMU and the cached image that both start
# (tools/image.sh, about a minute the first time); with "package" what builds and checks the Debian package; with "fuzz" .venv-fuzz,
# where atheris is; with "bench" what benchmarks compare with: bubblewrap (benchmarks/sandbox.py) and model-signing
# (benchmarks/verify_beside.py).  On Debian, as root, it first installs the packages that a fresh machine lacks; as an ordinary user it
# prints the one line that root has to run.
set -eu
cd "$(dirname "$0")/.."

needed="python3 python3-venv libseccomp2 jq sqlite3 ca-certificates"
case "${1:-node}" in
official) needed="$needed python3-numpy python3-torch python3-sklearn python3-numba openssh-client" ;;
system) needed="$needed mmdebstrap systemd-container qemu-system-x86 e2fsprogs cpio lz4 xz-utils zstd" ;;
package) needed="$needed dpkg-dev binutils binutils-aarch64-linux-gnu lintian mandoc" ;;
bench) needed="$needed bubblewrap" ;;
esac

missing=
if command -v dpkg-query >/dev/null; then
    for package in $needed; do
        dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null | grep -qx installed || missing="$missing $package"
    done
fi
if [ -n "$missing" ]; then
    if [ "$(id -u)" = 0 ]; then
        echo "setup: installing$missing"
        export DEBIAN_FRONTEND=noninteractive
        apt-get update -qq
        # shellcheck disable=SC2086
        apt-get install -y -qq --no-install-recommends $missing >/dev/null
    else
        echo "setup: these Debian packages are missing; root installs them with"
        echo "    apt-get install --no-install-recommends$missing"
        echo "setup: tests that need them say so and do not run"
    fi
fi

# The deb runs on Debian's own interpreter, so the tests do too where it is there.
if [ -z "${PYTHON:-}" ]; then
    if [ -x /usr/bin/python3.11 ]; then PYTHON=/usr/bin/python3.11; else PYTHON=python3; fi
fi
"$PYTHON" -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info < (3, 14) else "setup: Python 3.11 to 3.13 is needed")'

# Installs the locked requirements FILE into the environment FOLDER once for each content of the lock; more arguments go to venv.
environment() {
    folder=$1
    lock=$2
    shift 2
    stamp=$folder/.lock-$(sha256sum "$lock" | cut -c1-16)
    if [ ! -e "$stamp" ]; then
        echo "setup: making $folder"
        rm -rf "$folder"
        "$PYTHON" -m venv "$@" "$folder"
        "$folder/bin/pip" install -qq --disable-pip-version-check --require-hashes --no-deps -r "$lock"
        touch "$stamp"
    fi
}

case "${1:-node}" in
official)
    environment .venv-official requirements/official.txt
    environment .venv-steps requirements/steps.txt --system-site-packages
    environment .venv-model-signing requirements/model-signing.txt
    ;;
system)
    "$PYTHON" -m tests.system.image
    ;;
package) ;;
bench) environment .venv-model-signing requirements/model-signing.txt ;;
fuzz) environment .venv-fuzz requirements/fuzz.txt ;;
*)
    environment .venv requirements/dev.txt
    if ! .venv/bin/python -c 'import sys, importlib.metadata as m; sys.exit(m.version("scaleoutd") != sys.argv[1])' \
        "$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)" 2>/dev/null; then
        .venv/bin/pip install -qq --disable-pip-version-check --no-deps --no-build-isolation --no-index -e .
    fi
    ;;
esac
