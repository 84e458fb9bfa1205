# SPDX-License-Identifier: Apache-2.0
"""`python -m scaleoutd.devcombiner --state DIR`: the combiner as a process of its own, for other processes.

Standard output: one JSON line with the facts at the start, and one with the history when a session has ended.  Standard
input: commands, one JSON object a line, answered with one JSON line each; its end, SIGTERM or SIGINT ends the combiner.

    {"do": "connected", "count": N, "timeout_s": S}                                         -> come, clients
    {"do": "offer", "client_id": C, "type": T, "model": FILE, "client_settings": {...}}     -> correlation_id, model_id
         (or "model_id": M instead of "model": a model offered before)
    {"do": "wait", "correlation_id": I, "timeout_s": S, "for": "result" | "done"}           -> come, the task's times
    {"do": "session", "seed": FILE, "rounds": N, "min_clients": N, "round_timeout_s": S}    -> session_id
    {"do": "certify", "request": FILE, "certificate": FILE}                                 -> a client certificate for a request
    {"do": "history"} {"do": "updates"}                                                     -> what came so far

Commands are carried out one after the other: a "wait" holds up the next line, a session does not.

Tokens and keys are the demo's own and die with it; the folder is 0700.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from scaleoutd.devcombiner.server import DevCombiner
from scaleoutd.errors import ConfigError, ScaleoutError

Json = dict[str, Any]


def main(arguments: list[str] | None = None) -> int:
    """Exit status 0 at the end of input or a signal; the error's own when it cannot start."""
    try:
        options = _options(arguments)
        combiner = DevCombiner(
            folder=options.state,
            client_certificate=options.client_certificate,
            hostname=options.hostname,
            rest_port=options.rest_port,
            grpc_port=options.grpc_port,
            access_lifetime_s=options.access_lifetime,
        )
        combiner.start()
    except ScaleoutError as exc:
        print(f"{exc}\n{exc.hint}", file=sys.stderr)
        return exc.exit_status
    try:
        _serve(combiner, options)
    finally:
        combiner.stop()
    return 0


class _Ended(Exception):
    """A signal asked for the end; raised in the main thread, which reads commands."""


def _serve(combiner: DevCombiner, options: argparse.Namespace) -> None:
    def end(number: int, frame: FrameType | None) -> None:
        raise _Ended

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    speaker = Speaker()
    try:
        speaker.say(facts(combiner, options.client))
        console = Console(combiner, speaker)
        for line in sys.stdin:
            if line.strip():
                speaker.say(console.answer(line))
                console.go_on()
    except _Ended:
        return


def facts(combiner: DevCombiner, names: list[str]) -> Json:
    """What a client needs; one entry in `clients` for each name."""
    clients = {}
    for name in names:
        certificate, key = combiner.issue_client_certificate(name)
        clients[name] = {"certificate": str(certificate), "key": str(key), "refresh_token": combiner.mint_refresh(name)}
    return {
        "api_url": combiner.api_url,
        "grpc_port": combiner.grpc_port,
        "ca_file": str(combiner.ca_file),
        "enrollment_token": combiner.mint_enrollment(lifetime_s=86400),
        "clients": clients,
    }


class Speaker:
    """Whole lines on standard output, from more than one thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def say(self, value: Json) -> None:
        """One line of JSON."""
        with self._lock:
            sys.stdout.write(json.dumps(value) + "\n")
            sys.stdout.flush()


class Console:
    """The commands of the module's head."""

    def __init__(self, combiner: DevCombiner, speaker: Speaker) -> None:
        self._combiner = combiner
        self._speaker = speaker
        self._later: list[threading.Thread] = []

    def go_on(self) -> None:
        """Starts what tells of the end of a session; its line may not come before the answer that the session has begun."""
        while self._later:
            self._later.pop().start()

    def answer(self, line: str) -> Json:
        """`{"ok": true, ...}` or `{"ok": false, "code": ..., "message": ...}`."""
        commands: dict[str, Callable[[Json], Json]] = {
            "offer": self._offer,
            "wait": self._wait,
            "connected": self._connected,
            "session": self._session,
            "certify": self._certify,
            "history": lambda command: {"history": _plain(self._combiner.history)},
            "updates": lambda command: {"updates": _plain(self._combiner.updates)},
        }
        try:
            command = json.loads(line)
            return {"ok": True} | commands[command["do"]](command)
        except ScaleoutError as exc:
            return {"ok": False, "code": exc.code, "message": exc.message}
        except (ValueError, KeyError, TypeError, OSError, RecursionError) as exc:
            return {"ok": False, "code": "config-invalid", "message": f"cannot do {line.strip()[:200]!r}: {exc!r}"}

    def _offer(self, command: Json) -> Json:
        model_id = command.get("model_id") or self._combiner.put_model(Path(command["model"]).read_bytes())
        correlation_id = self._combiner.offer_task(
            command["client_id"], command["type"], model_id, client_settings=command.get("client_settings")
        )
        return {"correlation_id": correlation_id, "model_id": model_id}

    def _wait(self, command: Json) -> Json:
        offer = self._combiner.board.offers[command["correlation_id"]]
        wanted = {"result": "result_at_s", "done": "done_at_s"}[command.get("for", "result")]
        come = self._combiner.board.wait_until(lambda: getattr(offer, wanted) is not None, command["timeout_s"])
        return {"come": come} | dataclasses.asdict(offer)

    def _connected(self, command: Json) -> Json:
        board = self._combiner.board
        come = board.wait_until(lambda: len(board.connected()) >= command["count"], command["timeout_s"])
        return {"come": come, "clients": board.connected()}

    def _certify(self, command: Json) -> Json:
        certificate = self._combiner.ca.certify_client(Path(command["request"]).read_bytes())
        Path(command["certificate"]).write_bytes(certificate)
        return {"certificate": command["certificate"]}

    def _session(self, command: Json) -> Json:
        session = self._combiner.start_session(
            Path(command["seed"]).read_bytes(),
            command["rounds"],
            command["min_clients"],
            command["round_timeout_s"],
            client_settings=command.get("client_settings"),
        )
        longest_s = (2 * command["rounds"] + 1) * command["round_timeout_s"]
        self._later.append(threading.Thread(target=self._tell_end, args=(longest_s,), daemon=True))
        return {"session_id": session.session_id}

    def _tell_end(self, longest_s: float) -> None:
        try:
            status = self._combiner.wait_session(longest_s).status
        except ScaleoutError as exc:
            status = f"failed: {exc}"
        self._speaker.say({"session": status, "history": _plain(self._combiner.history)})


def _plain(records: list[Any]) -> list[Json]:
    return [dataclasses.asdict(record) for record in records]


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m scaleoutd.devcombiner", description="The demo's combiner.")
    parser.add_argument("--state", type=Path, required=True, help="a new folder for certificates and models")
    parser.add_argument("--client", action="append", default=[], help="issue a certificate and a token for this client id")
    parser.add_argument("--client-certificate", choices=("required", "none"), default="required")
    parser.add_argument("--hostname", default="localhost", help="in its certificate and answers; it listens on loopback")
    parser.add_argument("--rest-port", type=int, default=0)
    parser.add_argument("--grpc-port", type=int, default=0)
    parser.add_argument("--access-lifetime", type=int, default=3600, help="seconds")
    options = parser.parse_args(arguments)
    if options.access_lifetime <= 0:
        raise ConfigError(f"cannot use --access-lifetime {options.access_lifetime}: it must be above 0")
    return options


if __name__ == "__main__":
    sys.exit(main())
