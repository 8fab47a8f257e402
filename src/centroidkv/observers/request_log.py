"""One line of JSON for each request. Holds numbers and words of ours, no text of a user's."""

import json
import logging
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from centroidkv.errors import ConfigError
from centroidkv.observing import RequestSeen, RouteSeen

_requests = logging.getLogger("centroidkv.requests")

# Named one by one: what `Usage` is given in future stays out of logs until somebody adds it here.
_MEASURED = (
    "prompt_tokens", "reused_tokens", "blended_tokens", "recomputed_tokens", "computed_tokens",
    "unloaded_tokens", "completion_tokens", "drafted_tokens", "stored_tokens", "pinned_passages",
    "dropped_pins", "cluster", "distance", "tier", "loaded_bytes", "loaded_levels", "kv_precision",
    "approximate", "error_bound", "blend_problem", "embed_s", "route_s", "load_s", "prefill_s",
    "decode_s", "ttft_s",
)  # fmt: skip

__all__ = ["FIELDS", "RequestLog"]

FIELDS = ("time", "request_id", "ended", "outcome", "reason", "seconds", *_MEASURED)


class RequestLog:
    """Writes requests to the logger `centroidkv.requests`, or to a file.

    Where nobody has set up logging, the logger's lines go to stderr.

    Raises:
        ConfigError: The file cannot be opened.
    """

    def __init__(self, path: str | Path | None = None) -> None:
        self._file: int | None = None
        if path is not None:
            self._file = _opened(Path(path))
            return
        if _requests.level == logging.NOTSET:
            _requests.setLevel(logging.INFO)
        if not _requests.hasHandlers():
            _requests.addHandler(logging.StreamHandler())

    def began(self) -> None:
        """Do nothing: a line tells of a whole request."""

    def routed(self, seen: RouteSeen) -> None:
        """Do nothing: a request says what its route took."""

    def answered(self, seen: RequestSeen) -> None:
        line = json.dumps(_fields(seen), allow_nan=False)
        if self._file is None:
            _requests.info("%s", line)
        else:
            # One write to a file opened for appending: lines of several threads do not mix.
            os.write(self._file, line.encode() + b"\n")

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None


def _opened(path: Path) -> int:
    try:
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    except OSError as error:
        raise ConfigError(
            f"json_logs cannot be written to {path} ({error.strerror}); give another path"
        ) from error


def _fields(seen: RequestSeen) -> Mapping[str, Any]:
    usage = seen.usage.as_dict() if seen.usage is not None else {}
    measured = {name: _rounded(usage[name]) for name in _MEASURED if name in usage}
    return {
        "time": datetime.fromtimestamp(seen.ended_ns / 1e9, UTC).isoformat(timespec="milliseconds"),
        "request_id": seen.id,
        "ended": seen.ended,
        "outcome": seen.outcome,
        "reason": seen.reason,
        "seconds": _rounded(seen.seconds),
        **measured,
    }


def _rounded(value: Any) -> Any:
    return round(value, 6) if isinstance(value, float) else value
