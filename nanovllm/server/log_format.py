"""How the server's log looks: lines for people, or JSON objects for collectors. On stderr."""

import json
import logging
import sys
import time
from typing import Any

from nanovllm.server.settings import LogLevel, ServerSettings

__all__ = ["JsonFormatter", "configure_logging"]

_LEVELS: dict[LogLevel, int] = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}
_LOGGERS = ("nanovllm", "uvicorn")


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (UTC), level, logger, message, exception, and a record's own `fields`."""

    def format(self, record: logging.LogRecord) -> str:
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        entry: dict[str, Any] = {
            "time": f"{seconds}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        entry.update(getattr(record, "fields", {}))
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str)


def configure_logging(settings: ServerSettings) -> None:
    """Sends the log of the server, the engine and uvicorn to stderr. uvicorn's own access log stays off: ours has the
    request's id and its tokens."""
    handler = logging.StreamHandler(sys.stderr)
    text = logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    handler.setFormatter(JsonFormatter() if settings.log_format == "json" else text)
    for name in _LOGGERS:
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel(_LEVELS[settings.log_level])
        logger.propagate = False
    logging.getLogger("uvicorn.access").disabled = True
