# SPDX-License-Identifier: Apache-2.0
"""The operational log: JSON lines with stable fields for the journal, plain text for a terminal.

    {"time": "2026-01-31T12:00:00.123Z", "level": "info", "room": "agent", "code": "", "event": "connected",
     "correlation_id": "", "message": "..."}

Rules: every field is always there; control characters of foreign text are escaped, so a combiner cannot move a
terminal's cursor or forge a line; what looks like a JWT is never written.
"""

from __future__ import annotations

import logging
import re
from datetime import UTC, datetime
from typing import IO, Any, Literal

from scaleoutd.errors import ScaleoutError

try:
    from pythonjsonlogger.json import JsonFormatter
except ImportError:  # python-json-logger 2 (Debian 12) has it under its old name
    from pythonjsonlogger.jsonlogger import JsonFormatter  # type: ignore[attr-defined]

FIELDS = ("code", "event", "correlation_id")
_JWT = re.compile(r"eyJ[A-Za-z0-9_-]{8,}(\.[A-Za-z0-9_-]+){0,2}")
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


class Log:
    """`log.info("connected", "connected to …", correlation_id=…)`; a ScaleoutError brings its code and hint."""

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger

    def debug(self, event: str, message: str, *, correlation_id: str = "") -> None:
        self._write(logging.DEBUG, event, message, "", correlation_id)

    def info(self, event: str, message: str, *, correlation_id: str = "") -> None:
        self._write(logging.INFO, event, message, "", correlation_id)

    def warning(self, event: str, cause: ScaleoutError | str, *, correlation_id: str = "") -> None:
        self._problem(logging.WARNING, event, cause, correlation_id)

    def error(self, event: str, cause: ScaleoutError | str, *, correlation_id: str = "") -> None:
        self._problem(logging.ERROR, event, cause, correlation_id)

    def bug(self, event: str, *, correlation_id: str = "") -> None:
        """An exception that is no ScaleoutError: with traceback, here and nowhere else."""
        extra = {"code": "internal", "event": event, "correlation_id": correlation_id}
        self._logger.error("a bug in scaleoutd", exc_info=True, extra=extra)

    def _problem(self, level: int, event: str, cause: ScaleoutError | str, correlation_id: str) -> None:
        if isinstance(cause, ScaleoutError):
            message = f"{cause.message}. {cause.hint}" if cause.hint else cause.message
            self._write(level, event, message, cause.code, correlation_id)
        else:
            self._write(level, event, cause, "", correlation_id)

    def _write(self, level: int, event: str, message: str, code: str, correlation_id: str) -> None:
        self._logger.log(level, "%s", message, extra={"code": code, "event": event, "correlation_id": correlation_id})


def open_log(stream: IO[str], form: Literal["json", "text"], level: str = "INFO", room: str = "agent") -> Log:
    """A Log that writes to `stream`; the logging module's global loggers are left alone."""
    logger = logging.Logger(f"scaleoutd.{room}", level)
    handler = logging.StreamHandler(stream)
    handler.setFormatter(_JsonForm(room) if form == "json" else _TextForm(room))
    logger.addHandler(handler)
    return Log(logger)


def escape(text: str) -> str:
    """`text` on one line, without control or direction characters, and without tokens."""
    return _CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", _JWT.sub("[token]", text))


class _JsonForm(JsonFormatter):
    def __init__(self, room: str) -> None:
        super().__init__("%(message)s")
        self._room = room

    def add_fields(self, log_record: dict[str, Any], record: logging.LogRecord, message_dict: dict[str, Any]) -> None:
        log_record["time"] = _time_of(record)
        log_record["level"] = record.levelname.lower()
        log_record["room"] = self._room
        for field in FIELDS:
            log_record[field] = escape(str(getattr(record, field, "")))
        log_record["message"] = escape(record.getMessage())
        if record.exc_info:
            log_record["traceback"] = _traceback(self, record)


class _TextForm(logging.Formatter):
    def __init__(self, room: str) -> None:
        super().__init__()
        self._room = room

    def format(self, record: logging.LogRecord) -> str:
        code = getattr(record, "code", "")
        mark = "" if record.levelno <= logging.INFO else f"{record.levelname.lower()}: "
        at = datetime.fromtimestamp(record.created, UTC).astimezone()
        line = f"{at:%H:%M:%S} {self._room}: {mark}{escape(record.getMessage())}"
        if code:
            line += f" [{escape(str(code))}]"
        if record.exc_info:
            line += "\n" + _traceback(self, record)
        return line


def _traceback(form: logging.Formatter, record: logging.LogRecord) -> str:
    lines = form.formatException(record.exc_info) if record.exc_info else ""
    return _JWT.sub("[token]", lines if isinstance(lines, str) else "\n".join(lines))


def _time_of(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).strftime("%Y-%m-%dT%H:%M:%S.") + f"{int(record.msecs):03d}Z"
