"""Log lines: one per state change, past tense, with what it is about as `name=value` at the end."""

from __future__ import annotations

import logging
import sys

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class _Lines(logging.Formatter):
    """`2026-11-20T01:30:05 INFO worker.gpu pipeline.episodes episode stored seconds=63.2`."""

    def format(self, record: logging.LogRecord) -> str:
        extra = {k: v for k, v in vars(record).items() if k not in _STANDARD}
        line = super().format(record)
        head, *trace = line.split("\n", 1)
        return "\n".join([" ".join([head, *(f"{k}={v}" for k, v in extra.items())]), *trace])


def set_up_logging(process: str, level: str) -> None:
    """Send this process's log lines to stderr.

    Args:
        process: which of our processes this is; stands in each line.
        level: name of the lowest level shown.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        _Lines(f"%(asctime)s %(levelname)s {process} %(name)s %(message)s", "%Y-%m-%dT%H:%M:%S")
    )
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for chatty in ("botocore", "boto3", "urllib3", "kombu", "celery", "jieba", "websockets"):
        logging.getLogger(chatty).setLevel(max(logging.WARNING, logging.getLevelName(level)))
