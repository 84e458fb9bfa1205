#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Compiles requirements/*.in to *.txt with the hash of every file of every release, for all supported Pythons at once.
set -eu
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet pip-tools
for name in runtime dev official; do
    "$work/env/bin/pip-compile" --quiet --generate-hashes --allow-unsafe --strip-extras --no-header --no-emit-index-url \
        --no-emit-find-links --no-emit-trusted-host --output-file "requirements/$name.txt" "requirements/$name.in"
done
