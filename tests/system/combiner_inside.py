# SPDX-License-Identifier: Apache-2.0
"""A combiner in the guest itself, as another program of the same host: files, process and certificate of its own.

It is the tree's DevCombiner in /opt/combiner, answers as api.example.org, which the guest's /etc/hosts has on loopback, and knows
nothing of the package that is tested.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.e2e.site import SEED
from tests.system.guest import Guest
from tests.system.image import TREE
from tests.system.install import libraries

HOST, API_PORT, GRPC_PORT = "api.example.org", 443, 12080
HOME = "/opt/combiner"
PROGRAM = f"""\
import sys
sys.path[:0] = ["{HOME}", "{HOME}/site"]
from scaleoutd.devcombiner.__main__ import main
sys.exit(main())
"""


class CombinerInside:
    """Runs from `with` to its end; `facts` are those of scaleoutd/devcombiner/__main__.py."""

    def __init__(self, guest: Guest, client: str) -> None:
        self._guest, self._client = guest, client
        self.facts: dict[str, Any] = {}
        self._answers = self._sessions = 0

    def __enter__(self) -> Self:
        guest = self._guest
        with tempfile.TemporaryDirectory(dir=guest.folder) as name:
            site = Path(name, "site")
            libraries(site, guest)
            guest.push(site, f"{HOME}/site")
        guest.push(TREE / "scaleoutd", f"{HOME}/scaleoutd")
        guest.write(f"{HOME}/seed.npz", SEED)
        guest.run(f"echo '127.0.0.1 {HOST}' >>/etc/hosts")
        options = {"--state": f"{HOME}/state", "--client": self._client, "--hostname": HOST}
        ports = {"--rest-port": str(API_PORT), "--grpc-port": str(GRPC_PORT)}
        words = [word for pair in (options | ports).items() for word in pair]
        self._process = guest.start(["/usr/bin/python3", "-IBc", PROGRAM, *words], stdin=None)
        self.facts = json.loads(self._process.wait_for(r"^\{.*\}$").group())
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._process.end_input()
        self._process.wait()

    def certify(self, request: str, certificate: str) -> None:
        """Its CA signs the request in one file of the guest and writes the certificate into another."""
        self._ask({"do": "certify", "request": request, "certificate": certificate})

    def rounds(self, number: int, round_timeout_s: float = 60) -> list[dict[str, Any]]:
        """A whole session with one client; what the combiner says of each round."""
        limit_s = round_timeout_s * self._guest.patience
        assert self._ask({"do": "connected", "count": 1, "timeout_s": limit_s})["come"]
        begun = {"do": "session", "seed": f"{HOME}/seed.npz", "rounds": number, "min_clients": 1, "round_timeout_s": limit_s}
        self._ask(begun)
        self._sessions += 1
        told = self._line("session", self._sessions, timeout_s=round_timeout_s * (2 * number + 1))
        assert told["session"] == "completed", told
        history: list[dict[str, Any]] = told["history"]
        return history[-number:]

    def _ask(self, command: dict[str, Any]) -> dict[str, Any]:
        self._process.send(json.dumps(command).encode() + b"\n")
        self._answers += 1
        told = self._line("ok", self._answers)
        assert told["ok"], (command, told)
        return told

    def _line(self, key: str, number: int, timeout_s: float = 60) -> dict[str, Any]:
        """The line of that number among those that begin with `key`."""
        found = self._process.wait_for(rf'(?s)(?:^\{{"{key}": [^\n]*\n.*?){{{number}}}', timeout_s).group()
        lines = [line for line in found.splitlines() if line.startswith(f'{{"{key}"')]
        told: dict[str, Any] = json.loads(lines[-1])
        return told
