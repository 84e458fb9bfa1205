# SPDX-License-Identifier: Apache-2.0
"""Our messages have the names, numbers and types of the official package's: read from its own descriptors."""

from __future__ import annotations

import base64
import subprocess
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2

from scaleoutd.proto import edge_pb2 as edge

DUMP = (
    "import base64, sys\n"
    "from scaleoututil.grpc import scaleout_pb2 as theirs\n"
    "sys.stdout.write(base64.b64encode(theirs.DESCRIPTOR.serialized_pb).decode())\n"
)


def described(file: descriptor_pb2.FileDescriptorProto) -> dict[str, Any]:
    messages: dict[str, Any] = {
        message.name: {
            field.name: (field.number, field.type, field.label, field.type_name, field.proto3_optional) for field in message.field
        }
        for message in file.message_type
    }
    enums: dict[str, Any] = {enum.name: {value.name: value.number for value in enum.value} for enum in file.enum_type}
    services: dict[str, Any] = {
        service.name: {
            method.name: (method.input_type, method.output_type, method.client_streaming, method.server_streaming)
            for method in service.method
        }
        for service in file.service
    }
    return {"package": file.package, "messages": messages, "enums": enums, "services": services}


def test_every_message_enum_and_service_is_the_official_one(official_bin: Path) -> None:
    dumped = subprocess.run([str(official_bin / "python"), "-c", DUMP], capture_output=True, check=True).stdout
    theirs = descriptor_pb2.FileDescriptorProto.FromString(base64.b64decode(dumped))
    ours = descriptor_pb2.FileDescriptorProto.FromString(edge.DESCRIPTOR.serialized_pb)
    assert described(ours) == described(theirs)
