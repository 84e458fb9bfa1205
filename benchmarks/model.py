# SPDX-License-Identifier: Apache-2.0
"""Large models: what our node adds to the wire and the step, beside the official client, in one run.

    python -m benchmarks.model [--json] [--mib 200 --mib 1024] [--count N] [--without dispatcher --without importer]

Random weights, one array of float32, stored in the container.  The step copies the weights in a stream.  For each task:
total (directive → update, the devcombiner's clock) less wire (the download and upload streams, same clock) less step (its own
clock, the same monotonic one) is the client's overhead, as research/edge-baseline.md defines it; in importer mode the model's
(de)serialisation happens in the client's own process and library, and counts as overhead.  Beside it a bare gRPC download and
upload of the same bytes.  Peaks are sampled every 20 ms: VmHWM of each process of a client, and the bytes on disk of its files,
unnamed ones included.  Bars: DESIGN.md section 9.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import random
import shutil
import statistics
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc

from benchmarks.official import MODES, start_official
from benchmarks.peaks import Peaks
from scaleoutd.devcombiner.records import TRAIN
from scaleoutd.devcombiner.server import DevCombiner
from scaleoutd.devcombiner.tokens import ACCESS
from scaleoutd.proto import edge_pb2 as edge
from scaleoutd.proto.methods import DOWNLOAD, UPLOAD
from tests.e2e.site import NodeProcess, Project, write_policy

MIB = 1024 * 1024
PYTHON = "/usr/bin/python3"
COPY = """\
import json, shutil, sys, time, zipfile
began = time.monotonic()
with zipfile.ZipFile(sys.argv[1]) as archive, archive.open("training_model.bin") as source, open(sys.argv[2], "wb") as target:
    shutil.copyfileobj(source, target, 1 << 20)
with open(sys.argv[2] + "-metadata", "w") as file:
    json.dump({"num_examples": 1, "began_s": began, "ended_s": time.monotonic()}, file)
"""
STARTUP = """\
import time
from scaleoututil.helpers.helpers import get_helper
from scaleoututil.utils.model import ScaleoutModel

HELPER = get_helper("numpyhelper")

def startup(client):
    client.set_train_callback(train)

def train(model, settings):
    weights = model.get_training_model(HELPER)
    now = time.monotonic()
    new = ScaleoutModel.from_training_model(weights, HELPER)
    return new, {"training_metadata": {"num_examples": 1, "began_s": now, "ended_s": now}}
"""


def random_model(size: int) -> bytes:
    """An npz (stored) with one float32 array: 24 random bits a number, magnitudes up to 2, as weights have them."""
    count = size // 4
    chooser = random.Random(1)
    numbers = bytearray(count * 4)
    block = MIB // 4
    tops = bytes(chooser.choice((0x3C, 0x3D, 0x3E, 0x3F, 0xBC, 0xBD, 0xBE, 0xBF)) for _ in range(block))
    for start in range(0, count, block):
        length = min(block, count - start)
        piece = bytearray(os.urandom(length * 4))
        piece[3::4] = tops[:length]
        numbers[start * 4 : (start + length) * 4] = piece
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (%d,), }" % count
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive, archive.open("0.npy", "w", force_zip64=True) as file:
        file.write(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
        file.write(numbers)
    return out.getvalue()


def write_project(folder: Path) -> Project:
    project = Project(folder / "project")
    project.folder.mkdir(parents=True)
    (project.folder / "scaleout.yaml").write_text(f"entry_points:\n  train: {{command: {PYTHON} train.py}}\n")
    (project.folder / "train.py").write_text(COPY)
    project.sign(steps={"train": (PYTHON, "train.py")})
    return project


def start_ours(stack: ExitStack, combiner: DevCombiner, folder: Path, largest: int) -> tuple[int, Path]:
    """pid of the node and the folder of its state."""
    project = write_project(folder)
    certificate, key = combiner.issue_client_certificate("ours")
    policy = write_policy(
        folder / "policy.yaml",
        project,
        project.write_trust_root(folder / "root.json"),
        limits={"model_bytes": largest * 2, "output_bytes": largest * 2, "scratch_bytes": largest * 3, "memory_bytes": "1GiB"},
        egress={"metadata": ["began_s", "ended_s"]},
    )
    node = NodeProcess(
        [
            "--api-url", combiner.api_url, "--local-package", "--name", "ours", "--ca", str(combiner.ca_file),
            "--cert", str(certificate), "--key", str(key), "--policy", str(policy), "--state-dir", str(folder / "state"),
            "--poll-interval", "1", "--log-format", "text",
        ],
        combiner.mint_enrollment(),
        {"SCALEOUT_CLIENT_SEND_TELEMETRY": "false"},
    )  # fmt: skip
    stack.callback(node.stop)
    return node.process.pid, folder / "state"


def official_project(folder: Path, mode: str) -> Path:
    client = folder / "client"
    client.mkdir(parents=True)
    if mode == "dispatcher":
        (client / "scaleout.yaml").write_text(f"entry_points:\n  train: {{command: {PYTHON} train.py}}\n")
        (client / "train.py").write_text(COPY)
    else:
        (client / "scaleout.yaml").write_text("entry_points:\n  startup: startup.py\n")
        (client / "startup.py").write_text(STARTUP)
    return folder


def one_task(combiner: DevCombiner, model: str, pid: int, folder: Path) -> dict[str, Any]:
    """The figures of one training, seconds and bytes."""
    client = combiner.board.connected()[0]
    with Peaks(pid, folder) as peaks:
        task = combiner.offer_task(client, TRAIN, model, session_id="bench", round_id="1")
        if not combiner.board.wait_until(lambda: combiner.board.offers[task].done, 600):
            raise SystemExit(f"task {task} did not end")
    offer = combiner.board.offers[task]
    update = next((update for update in combiner.updates if update.correlation_id == task), None)
    if update is None or offer.handed_out_at_s is None:
        raise SystemExit(f"task {task} ended {offer.status}: {offer.response}")
    kinds = {"download": model, "upload": update.model_update_id}
    streams = {kind: [s for s in combiner.streams if s.kind == kind and s.model_id == name][-1] for kind, name in kinds.items()}
    told = update.meta["training_metadata"]
    down, up = streams["download"], streams["upload"]
    total_s = update.arrived_at_s - offer.handed_out_at_s
    wire_s = down.ended_at_s - down.began_at_s + up.ended_at_s - up.began_at_s
    step_s = told["ended_s"] - told["began_s"]
    return {
        "overhead_s": total_s - wire_s - step_s,
        "total_s": total_s,
        "wire_s": wire_s,
        "step_s": step_s,
        "before_step_s": told["began_s"] - down.ended_at_s,
        "after_step_s": up.began_at_s - told["ended_s"],
        "scratch_bytes": peaks.scratch_bytes,
        "rss_bytes": peaks.rss_bytes,
    }


def bare_transfer(combiner: DevCombiner, model: str, folder: Path) -> dict[str, float]:
    """Download to a file and upload of it, with gRPC's own TLS and nothing else: the floor of any client."""
    credentials = grpc.ssl_channel_credentials(combiner.ca_file.read_bytes())
    token = combiner.office.mint(ACCESS, "bare", time.time())
    metadata = (("client", "bare"), ("client-id", "bare"), ("name", "bare"), ("authorization", f"Bearer {token}"))
    path = folder / "bare.model"
    try:
        with grpc.secure_channel(f"localhost:{combiner.grpc_port}", credentials) as channel:
            began_s = time.monotonic()
            get = channel.unary_stream(DOWNLOAD.path, edge.ModelRequest.SerializeToString, edge.FileChunk.FromString)
            digest = hashlib.sha256()
            with path.open("wb") as file:
                for chunk in get(edge.ModelRequest(model_id=model), metadata=metadata):
                    file.write(chunk.data)
                    digest.update(chunk.data)
            down_s = time.monotonic() - began_s
            began_s = time.monotonic()
            put = channel.stream_unary(UPLOAD.path, edge.FileChunk.SerializeToString, edge.ModelResponse.FromString)
            more = (("model-id", f"bare-{time.monotonic_ns()}"), ("checksum", digest.hexdigest()))
            answer = put(_pieces(path), metadata=(*metadata, *more))
            if answer.status != edge.OK:
                raise SystemExit(f"the bare upload was refused: {answer.message}")
            return {"download_s": down_s, "upload_s": time.monotonic() - began_s}
    finally:
        path.unlink(missing_ok=True)


def _pieces(path: Path) -> Iterator[edge.FileChunk]:
    with path.open("rb") as file:
        while data := file.read(MIB):
            yield edge.FileChunk(data=data)


def measure(sizes: Sequence[int], count: int, without: Sequence[str]) -> dict[str, Any]:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-model-")))
        strict = stack.enter_context(DevCombiner())
        sides: dict[str, tuple[DevCombiner, int, Path]] = {
            "ours": (strict, *start_ours(stack, strict, folder / "ours", max(sizes)))
        }
        bare = stack.enter_context(DevCombiner(client_certificate="none"))
        for mode in MODES:
            if mode in without:
                continue
            combiner = stack.enter_context(DevCombiner(client_certificate="none"))
            pid = start_official(stack, combiner, official_project(folder / mode, mode), mode)
            sides[mode] = (combiner, pid, folder / mode)
        for name, (combiner, _, place) in sides.items():
            if not combiner.board.wait_until(lambda: bool(combiner.board.connected()), 60):  # noqa: B023  called here only
                raise SystemExit(f"{name} did not connect; see {place}")
        results = [_one_size(size, count, sides, bare, folder) for size in sizes]
    return {"benchmark": "model", "n": count, "sizes": results, "load_average": os.getloadavg()[0]}


def _one_size(
    size: int, count: int, sides: dict[str, tuple[DevCombiner, int, Path]], bare: DevCombiner, folder: Path
) -> dict[str, Any]:
    model = random_model(size)
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in sides}
    floors = []
    for _ in range(count):
        floors.append(bare_transfer(bare, bare.put_model(model), folder))
        _empty(bare)
        for name, (combiner, pid, place) in sides.items():
            found[name].append(one_task(combiner, combiner.put_model(model), pid, place))
            _empty(combiner)
    result: dict[str, Any] = {"model_bytes": size, "bare": _median(floors)}
    for name, figures in found.items():
        result[name] = _median(figures)
        result[name]["scratch_ratio"] = round(max(item["scratch_bytes"] for item in figures) / size, 3)
        labels = sorted({label for item in figures for label in item["rss_bytes"]})
        result[name]["rss_mib"] = {
            label: round(max(item["rss_bytes"].get(label, 0) for item in figures) / MIB, 1) for label in labels
        }
    bare_s = result["bare"]["download_s"] + result["bare"]["upload_s"]
    result["overhead_over_bare"] = round(result["ours"]["overhead_s"] / bare_s, 2)
    for name in sides:
        if name != "ours":
            result[f"ratio_{name}"] = round(result["ours"]["overhead_s"] / result[name]["overhead_s"], 3)
    return result


def _empty(combiner: DevCombiner) -> None:
    """The combiner's copies go, or the disk would fill up."""
    for stored in combiner.store.all().values():
        stored.path.unlink(missing_ok=True)


def _median(figures: Sequence[dict[str, Any]]) -> dict[str, Any]:
    keys = [key for key, value in figures[0].items() if isinstance(value, float)]
    return {key: round(statistics.median(item[key] for item in figures), 3) for key in keys}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--mib", type=int, action="append", help="model size; may be given again [200 and 1024]")
    parser.add_argument("--count", type=int, default=1)
    parser.add_argument("--without", choices=MODES, action="append", default=[], help="leave a mode of the official client out")
    given = parser.parse_args()
    sizes = [mib * MIB for mib in given.mib or (200, 1024)]
    free = shutil.disk_usage(tempfile.gettempdir()).free
    if free < 8 * max(sizes):
        raise SystemExit(f"cannot measure: {free // MIB} MiB free, expected {8 * max(sizes) // MIB}")
    result = measure(sizes, given.count, given.without)
    print(json.dumps(result) if given.json else json.dumps(result, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
