#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Compiles requirements/*.in to *.txt with the hash of every file of every release, for all supported Pythons at once.
set -eu
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet pip-tools uv
for name in runtime site dev fuzz model-signing; do
    "$work/env/bin/pip-compile" --quiet --generate-hashes --allow-unsafe --strip-extras --no-header --no-emit-index-url \
        --no-emit-find-links --no-emit-trusted-host --output-file "requirements/$name.txt" "requirements/$name.in"
done
# The official client declares a numpy that has no build for Python 3.11; only uv can override that (see official.in).
"$work/env/bin/uv" pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
    --no-emit-find-links --no-header --override requirements/official.override requirements/official.in \
    --output-file requirements/official.txt
# Steps of official projects run on the system's numpy and torch; everything else of the official client is beside them.
{
    echo "# SPDX-License-Identifier: Apache-2.0"
    echo "# Made from official.txt by tools/lock.sh: the same without numpy, which the system's torch is built against."
    sed 1,2d requirements/official.txt | awk '/^[^ #]/ { keep = $0 !~ /^numpy==/ } keep'
} >requirements/steps.txt
