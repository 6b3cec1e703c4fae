"""Log lines as a NIM writes them: to stdout, plain, or one JSON object a line when NIM_JSONL_LOGGING is 1."""

from __future__ import annotations

import json
import logging
import os
import sys
import time

LEVELS = {"DEFAULT": "INFO", "TRACE": "DEBUG"}  # NIM_LOG_LEVEL values that Python's logging does not know


class _Plain(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(record.created))
        head = f"{record.levelname} {stamp}.{int(record.msecs):03d} {record.filename}:{record.lineno}]"
        return f"{head} {record.getMessage()}"


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        return json.dumps(
            {
                "level": record.levelname,
                "time": f"{stamp}.{int(record.msecs):03d}Z",
                "file_path": record.filename,
                "line_number": str(record.lineno),
                "message": record.getMessage(),
            }
        )


def setup(name: str) -> logging.Logger:
    """The process's logger, at NIM_LOG_LEVEL (unknown levels count as INFO)."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(_Json() if os.environ.get("NIM_JSONL_LOGGING") == "1" else _Plain())
    logger = logging.getLogger(name)
    logger.handlers[:] = [handler]
    logger.propagate = False
    wanted = os.environ.get("NIM_LOG_LEVEL", "INFO").upper()
    level = logging.getLevelName(LEVELS.get(wanted, wanted))
    logger.setLevel(level if isinstance(level, int) else logging.INFO)
    return logger
