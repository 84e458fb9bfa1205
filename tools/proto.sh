#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Generates the messages with grpcio-tools 1.51.1: its code runs on protobuf 3.21 (Debian 12) and on the newest.
set -eu
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet 'grpcio-tools==1.51.1' 'protobuf<5' 'setuptools<81'
"$work/env/bin/python" -m grpc_tools.protoc -I. --python_out=. --pyi_out=. scaleoutd/proto/edge.proto
sed -i '1i # SPDX-License-Identifier: Apache-2.0' scaleoutd/proto/edge_pb2.py scaleoutd/proto/edge_pb2.pyi
