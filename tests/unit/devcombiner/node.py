# SPDX-License-Identifier: Apache-2.0
"""A node for the tests of sessions: real gRPC with mTLS, polling in a thread, training by a given function."""

from __future__ import annotations

import hashlib
import json
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from scaleoutd.devcombiner.container import read_container, write_container
from scaleoutd.devcombiner.npz import FlatArray, read_npz, write_npz
from scaleoutd.devcombiner.server import DevCombiner
from scaleoutd.proto import edge_pb2 as edge
from scaleoutd.proto import methods
from tests.unit.devcombiner.wire import Wire, chunks, wire

Arrays = dict[str, FlatArray]
# Gives the trained arrays and the number of examples, or a status (FAILED, or "" = stay silent).
Train = Callable[[Arrays, dict[str, float]], tuple[Arrays, int] | str]

POLL_S = 0.02


class Node:
    """`stopped` collects what the combiner asked to stop; `tasks` what it handed out."""

    def __init__(self, client: Wire, train: Train) -> None:
        self._client = client
        self._train = train
        self._done: list[edge.ActivityReport] = []
        self.stopped: list[str] = []
        self.tasks: list[edge.TaskRequest] = []

    def poll(self) -> None:
        reports, self._done = self._done, []
        request = edge.ClientReport(client_id=self._client.client_id, reports=reports)
        known = {task.correlation_id for task in self.tasks}
        for task in self._client.call(methods.POLL_AND_REPORT, request).tasks:
            if task.correlation_id in known:
                self.stopped.append(task.status)
                self._finish(task, "INTERRUPTED")
                continue
            self.tasks.append(task)
            self._run(task)

    def _run(self, task: edge.TaskRequest) -> None:
        call = self._client.call(methods.DOWNLOAD, edge.ModelRequest(model_id=task.model_id))
        arrays = read_npz(read_container(b"".join(chunk.data for chunk in call)).weights)
        if task.type == "Scaleout_Validation":
            self._validated(task, arrays)
            return
        result = self._train(arrays, json.loads(task.data)["client_settings"])
        if isinstance(result, str):
            if result:
                self._finish(task, result)
            return
        update_id = str(uuid.uuid4())
        data = write_container(update_id, write_npz(result[0]), deflate=True)
        named = (("model-id", update_id), ("checksum", hashlib.sha256(data).hexdigest()))
        assert self._client.call(methods.UPLOAD, chunks(data), *named).status == edge.OK
        meta = json.dumps({"training_metadata": {"num_examples": result[1]}})
        update = edge.ModelUpdate(
            client_id=self._client.client_id,
            model_id=task.model_id,
            model_update_id=update_id,
            correlation_id=task.correlation_id,
            round_id=task.round_id,
            session_id=task.session_id,
            meta=meta,
        )
        self._client.call(methods.SEND_MODEL_UPDATE, update)
        self._finish(task, "COMPLETED")

    def _validated(self, task: edge.TaskRequest, arrays: Arrays) -> None:
        data = json.dumps({"first": arrays["w"].values[0]})
        message = edge.ModelValidation(
            client_id=self._client.client_id, model_id=task.model_id, data=data, correlation_id=task.correlation_id
        )
        self._client.call(methods.SEND_MODEL_VALIDATION, message)
        self._finish(task, "COMPLETED")

    def _finish(self, task: edge.TaskRequest, status: str) -> None:
        self._done.append(
            edge.ActivityReport(node_id=self._client.client_id, correlation_id=task.correlation_id, status=status, done=True)
        )


@contextmanager
def nodes(combiner: DevCombiner, **trains: Train) -> Iterator[dict[str, Node]]:
    """One connected, polling node for each name."""
    stop = threading.Event()
    with ExitStack() as stack:
        running: dict[str, Node] = {}
        threads: list[threading.Thread] = []
        for name, train in trains.items():
            client = stack.enter_context(wire(combiner, name))
            client.call(methods.ANNOUNCE, edge.ClientAnnounceRequest(client_id=name, type="Connect"))
            running[name] = Node(client, train)
            threads.append(threading.Thread(target=_poll_until, args=(running[name], stop)))
        for thread in threads:
            thread.start()
        try:
            yield running
        finally:
            stop.set()
            for thread in threads:
                thread.join()


def _poll_until(node: Node, stop: threading.Event) -> None:
    while not stop.wait(POLL_S):
        node.poll()
