"""All owners of a store, how long each keeps what it has, and how old that is. Knows no tenant."""

from centroidkv.kv.manifest import Manifest

__all__ = [
    "all_owners",
    "are_keyed",
    "has_sent",
    "note_keyed",
    "note_ttl",
    "noted_ttls",
    "oldest_blocks",
]

_KEYED = "keyed tenants"


def all_owners(manifest: Manifest) -> set[str]:
    """Return who has anything; a namespace that another was derived from is no owner."""
    query = "SELECT owner FROM owners WHERE owner NOT IN (SELECT namespace FROM owners)"
    return {str(owner) for (owner,) in manifest._rows(query)}


def note_ttl(manifest: Manifest, owner: str, ttl_s: float) -> None:
    """Note how long an owner keeps what it has, for when nobody opens it any more."""
    with manifest._writing() as db:
        db.execute("INSERT OR REPLACE INTO ttls VALUES (?, ?)", (owner, ttl_s))


def noted_ttls(manifest: Manifest) -> dict[str, float]:
    """Return the times to live that owners were given."""
    rows = manifest._rows("SELECT owner, ttl_s FROM ttls WHERE ttl_s > 0")
    return {str(owner): float(str(ttl_s)) for owner, ttl_s in rows}


def oldest_blocks(manifest: Manifest) -> dict[str, float]:
    """Return by namespace when the block was used that was not used for longest."""
    rows = manifest._rows("SELECT namespace, MIN(stored_s) FROM blocks GROUP BY namespace")
    return {str(namespace): float(str(used_s)) for namespace, used_s in rows}


def note_keyed(manifest: Manifest) -> None:
    """Note that tenants' names are keyed here, and found with the secret alone."""
    if not are_keyed(manifest):
        with manifest._writing() as db:
            db.execute("INSERT OR IGNORE INTO clocks VALUES (?, 1)", (_KEYED,))


def are_keyed(manifest: Manifest) -> bool:
    """Tell whether the store was ever opened with a secret for tenants' names."""
    return bool(manifest._rows("SELECT 1 FROM clocks WHERE name = ?", _KEYED))


def has_sent(manifest: Manifest) -> bool:
    """Tell whether blocks were ever sent to a remote."""
    return bool(manifest._rows("SELECT 1 FROM remotes LIMIT 1"))
