"""Every error this package raises on purpose.

::

    CentroidKVError
    ├── ConfigError (ValueError)          a setting, an argument or an input file is wrong
    │   ├── NotCalibrated                 an error bound was asked for without labelled pairs
    │   └── UnsupportedChain              a chain or engine that `accelerate` cannot copy
    ├── StoreError                        the store folder cannot be used
    │   └── StoreNotFound                 no store at that path
    ├── CacheError
    │   ├── CacheMismatch                 a file belongs to another fingerprint or format
    │   ├── CacheCorrupt                  a file is truncated, altered or not ours
    │   ├── CacheForbidden                a file belongs to another user and cannot be read
    │   ├── CacheFull                     no room in the budget for one more entry
    │   └── IndexUnavailable              the centroid index does not answer
    │       └── IndexClosed               it was closed or replaced meanwhile
    ├── ModelError
    │   ├── ModelNotFound                 no such folder, file, hub model or bundled name
    │   ├── UnsupportedModel              a model whose KV cannot be cut into prefixes
    │   ├── BlendRefused                  a model whose blended prompts come out too far off
    │   ├── ContextTooLong                prompt and answer do not fit into the model's context
    │   ├── GenerationTimeout (TimeoutError)  the answer was not complete in time
    │   ├── QueueFull                     more requests at once than may run and wait
    │   └── EngineClosing                 the process ends, and its engine with it
    └── MissingExtra (ImportError)        an optional dependency is absent; has the pip line

A message says what, where, and what to do. `CacheError` never reaches the caller of an answer:
the request goes on without the cache, and the reason stands in its usage.
"""

from pathlib import Path

__all__ = [
    "BlendRefused",
    "CacheCorrupt",
    "CacheError",
    "CacheForbidden",
    "CacheFull",
    "CacheMismatch",
    "CentroidKVError",
    "ConfigError",
    "ContextTooLong",
    "EngineClosing",
    "GenerationTimeout",
    "IndexClosed",
    "IndexUnavailable",
    "MissingExtra",
    "ModelError",
    "ModelNotFound",
    "NotCalibrated",
    "QueueFull",
    "StoreError",
    "StoreNotFound",
    "UnsupportedChain",
    "UnsupportedModel",
]


class CentroidKVError(Exception):
    """Root of the tree. Every error survives being handed on by another process."""

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuilt, (type(self), self.args, dict(self.__dict__))


def _rebuilt(
    kind: type[CentroidKVError], args: tuple[object, ...], state: dict[str, object]
) -> CentroidKVError:
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(state)
    return error


class ConfigError(CentroidKVError, ValueError):
    """A setting, an argument or an input file is wrong."""


class NotCalibrated(ConfigError):
    """An error bound needs labelled pairs of questions, and none were given for this embedder."""

    def __init__(self, max_error: float) -> None:
        super().__init__(
            f"max_error={max_error} needs a calibration of this store and embedder: run "
            "`centroidkv calibrate pairs.csv --store ...` (question_a,question_b,same_answer) or "
            "engine.calibrate(pairs), or leave max_error=None and get answers without a bound"
        )
        self.max_error = max_error


class UnsupportedChain(ConfigError):
    """A part of a chain, query engine or chat engine that `accelerate` cannot copy.

    `part` names it, `instead` says what to do by hand.
    """

    def __init__(self, part: str, *, instead: str) -> None:
        super().__init__(f"{part}; {instead}")
        self.part = part
        self.instead = instead


class StoreError(CentroidKVError):
    """The store folder cannot be used."""


class StoreNotFound(StoreError):
    """There is no store at a path that must hold one."""


class CacheError(CentroidKVError):
    """Cached KV cannot be read or written; costs time, never an answer."""


class CacheMismatch(CacheError):
    """A file was made for something else than it is used for."""

    def __init__(self, what: str, *, expected: str, found: str) -> None:
        super().__init__(f"{what}: expected {expected}, found {found}")
        self.expected = expected
        self.found = found


class CacheCorrupt(CacheError):
    """A file is truncated, altered or not one of ours."""

    def __init__(self, path: Path, detail: str) -> None:
        super().__init__(f"{path}: {detail}; it is ignored and will be computed again")
        self.path = path


class CacheForbidden(CacheError):
    """A file is there and may be sound, but this user may not read it."""

    def __init__(self, path: Path, owner: str) -> None:
        super().__init__(
            f"{path} may not be read by this user: it belongs to {owner}; it is left as it is. "
            "Give it to the user of the store's folder with chown"
        )
        self.path = path
        self.owner = owner


class CacheFull(CacheError):
    """There is no room for one more entry, and nothing that may be evicted."""

    def __init__(self, *, needed_bytes: int, budget_bytes: int) -> None:
        super().__init__(
            f"no room for {needed_bytes:,} more bytes under a budget of {budget_bytes:,} bytes; "
            "raise disk_budget_bytes"
        )
        self.needed_bytes = needed_bytes
        self.budget_bytes = budget_bytes


class IndexUnavailable(CacheError):
    """The centroid index does not answer; routing goes on from the plan."""


class IndexClosed(IndexUnavailable):
    """The index was closed or replaced while somebody still used it, which is nobody's fault."""


class ModelError(CentroidKVError):
    """A model cannot be loaded or cannot serve the request."""


class ModelNotFound(ModelError):
    """No such folder, file, hub model or bundled name."""


class UnsupportedModel(ModelError):
    """The model keeps a state that cannot be cut into token prefixes."""


class BlendRefused(ModelError):
    """The gate of `reuse="blend"` found a model's blended prompts too far from computed ones."""

    def __init__(self, why: str) -> None:
        super().__init__(
            f"this model may not blend: {why}; use reuse='exact', or a larger blend_share"
        )


class ContextTooLong(ModelError):
    """Prompt and answer do not fit into the model's context."""

    def __init__(self, *, prompt_tokens: int, context_tokens: int) -> None:
        super().__init__(
            f"the prompt has {prompt_tokens:,} tokens and the model's context holds "
            f"{context_tokens:,} including the answer; shorten the prompt, retrieve fewer "
            "passages or build with a smaller max_pin_tokens"
        )
        self.prompt_tokens = prompt_tokens
        self.context_tokens = context_tokens


class GenerationTimeout(ModelError, TimeoutError):
    """An answer was not complete in time; the KV computed until then is kept."""

    def __init__(self, *, timeout_s: float, num_tokens: int) -> None:
        super().__init__(
            f"no complete answer within timeout={timeout_s} seconds, {num_tokens} tokens were "
            "decoded; raise timeout or lower max_tokens"
        )
        self.timeout_s = timeout_s
        self.num_tokens = num_tokens


class QueueFull(ModelError):
    """More requests came at once than may run and wait; nothing was computed for this one."""

    def __init__(self, *, max_running: int, max_waiting: int) -> None:
        super().__init__(
            f"{max_running} requests run and {max_waiting} wait already; ask again when some have "
            "ended, or raise max_waiting"
        )
        self.max_running = max_running
        self.max_waiting = max_waiting


class EngineClosing(ModelError):
    """The process was told to end; the KV computed until then is kept."""

    def __init__(self) -> None:
        super().__init__("the engine is closing, as its process was told to; ask another process")


class MissingExtra(CentroidKVError, ImportError):
    """An optional dependency is absent; `command` installs it."""

    def __init__(self, package: str, *, command: str) -> None:
        super().__init__(f"{package} is not installed; run: {command}")
