"""How errors are named in logs, where no text of a user's may stand."""

from centroidkv.errors import CacheError, StoreError

__all__ = ["kind_of"]


def kind_of(error: BaseException) -> str:
    """Name an error for a log, without a message that may quote what a user wrote.

    Those of the cache and the store, of the system and of SQLite say what else is known.
    """
    name = type(error).__name__
    # SQLite's own texts quote a column that it cannot decode.
    known: object = getattr(error, "sqlite_errorname", None)
    if isinstance(error, (CacheError, StoreError)) or getattr(error, "errno", None):
        known = error
    return f"{name}: {known}" if known else name
