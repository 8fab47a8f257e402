"""Whether what stands in a manifest can have been written by this package.

SQLite's own check tells a torn file from a whole one, but any value may stand in any column, and
a path is made of an id. Knows no file.
"""

import sqlite3

__all__ = ["require_rows"]

_HEX = "(typeof({0}) <> 'text' OR {0} GLOB '*[^0-9a-f]*' OR length({0}) {1})"
_WHOLE = "(typeof({0}) <> 'integer' OR {0} NOT BETWEEN 0 AND {1})"
_TEXT = "(typeof({0}) <> 'text' OR length({0}) > 1024)"
_NUMBER = "(typeof({0}) NOT IN ('real', 'integer') OR abs({0}) > 1e300)"
_COUNTS = ("num_bytes", "uses", "depth", "last_used", "stored_s")
_ID, _ANY_ID = "<> 64", "NOT BETWEEN 64 AND 1024"

_ODD = {
    "blocks": (
        _HEX.format("id", _ID),
        _HEX.format("parent", _ANY_ID),
        _HEX.format("namespace", _ANY_ID),
        "(length(parent) > 64 AND parent <> namespace)",
        "(typeof(tokens) <> 'blob' OR length(tokens) % 4)",
        "length(tokens) - {extra} NOT BETWEEN 4 AND 256",
        *(_WHOLE.format(name, 1 << 40) for name in _COUNTS),
        *(_WHOLE.format(name, 1) for name in ("is_full", "in_remote")),
        _TEXT.format("level"),
        _NUMBER.format("worth"),
    ),
    "prefixes": (
        *(_TEXT.format(name) for name in ("plan", "namespace", "head")),
        _HEX.format("block", _ID),
        *(_WHOLE.format(name, 1 << 40) for name in ("cluster", "num_tokens")),
    ),
    "pins": (
        _TEXT.format("plan"),
        _WHOLE.format("cluster", 1 << 40),
        _WHOLE.format("in_memory", 1),
    ),
    "owners": (
        *(_HEX.format(name, _ANY_ID) for name in ("namespace", "owner")),
        _TEXT.format("model"),
    ),
    "ttls": (_HEX.format("owner", _ANY_ID), _NUMBER.format("ttl_s")),
    "remotes": (_TEXT.format("id"),),
    "clocks": (_TEXT.format("name"), _NUMBER.format("value")),
    "counters": (_TEXT.format("name"), _WHOLE.format("value", 1 << 60)),
}
# A block of another namespace than the one before it.
_STRAY = (
    "SELECT 1 FROM blocks AS b JOIN blocks AS p ON p.id = b.parent"
    " WHERE p.namespace <> b.namespace LIMIT 1"
)


def require_rows(db: sqlite3.Connection, extra_bytes: int = 0) -> None:
    """Look through every row, once, when a manifest is opened.

    Tokens have so many `extra_bytes` where they are sealed.

    Raises:
        sqlite3.DatabaseError: Something stands there that was not written by this package.
    """
    known = {str(row[0]) for row in db.execute("SELECT name FROM sqlite_schema WHERE type='table'")}
    for table, odd in _ODD.items():
        where = " OR ".join(odd).format(extra=extra_bytes)
        if table in known and db.execute(f"SELECT 1 FROM {table} WHERE {where} LIMIT 1").fetchone():
            raise sqlite3.DatabaseError(f"an odd value in {table}")
    if db.execute(_STRAY).fetchone():
        raise sqlite3.DatabaseError("a block that continues one of another namespace")
