# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from scaleoutd.proto import edge_pb2 as edge
from scaleoutd.proto.methods import METHODS


def test_every_call_of_the_proto_file_is_in_the_table_with_its_types() -> None:
    declared = {
        f"/{service.full_name}/{method.name}": (method.input_type.full_name, method.output_type.full_name)
        for service in edge.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    }
    table = {m.path: (m.request.DESCRIPTOR.full_name, m.response.DESCRIPTOR.full_name) for m in METHODS}
    assert table == declared
    assert len(METHODS) == len(table) == 16


def test_the_paths_are_the_wires() -> None:
    paths = {method.path for method in METHODS}
    assert "/scaleout.CombinerClient/PollAndReportAsync" in paths
    assert "/scaleout.ModelService/Download" in paths
