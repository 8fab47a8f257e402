"""All owners of a store, how long each keeps what it has, and how old that is. Knows no tenant."""

from centroidkv.kv.manifest import Manifest
from centroidkv.kv.manifest_schema import OWNERS

__all__ = [
    "NOBODY",
    "all_owners",
    "are_keyed",
    "drop_damaged_owners",
    "has_sent",
    "note_keyed",
    "note_owner",
    "note_ttl",
    "noted_ttls",
    "num_damaged_owners",
    "oldest_blocks",
    "unowned",
]

# Who has the KV of which nothing tells whose it is, because the manifest was damaged.
NOBODY = "nobody"
_KEYED = "keyed tenants"


def note_owner(manifest: Manifest, namespace: str, owner: str, *, model: str = "") -> None:
    """Note whose a namespace is; `model` is the fingerprint of the model that reads its tokens."""
    with manifest._writing() as db:
        OWNERS.drop_if_unsound(db, "namespace = ?", (namespace,))
        db.execute(
            "INSERT INTO owners VALUES (?, ?, ?) ON CONFLICT (namespace) DO UPDATE"
            " SET owner = excluded.owner, model = excluded.model"
            " WHERE owner <> excluded.owner OR model <> excluded.model",
            (namespace, owner, model),
        )


def all_owners(manifest: Manifest) -> set[str]:
    """Return who has anything; a namespace that another was derived from is no owner."""
    rows = manifest._rows(
        "SELECT owner FROM sound_owners WHERE owner NOT IN (SELECT namespace FROM sound_owners)"
    )
    return {str(owner) for (owner,) in rows} | ({NOBODY} if unowned(manifest) else set())


def unowned(manifest: Manifest) -> set[str]:
    """Return the namespaces that have blocks, and of which nothing tells whose they are."""
    rows = manifest._rows(
        "SELECT DISTINCT namespace FROM blocks"
        " WHERE namespace NOT IN (SELECT namespace FROM sound_owners)"
    )
    return {str(namespace) for (namespace,) in rows}


def num_damaged_owners(manifest: Manifest) -> int:
    """Count the rows of `owners` that are not what was written."""
    return manifest._number(
        "SELECT (SELECT COUNT(*) FROM owners) - (SELECT COUNT(*) FROM sound_owners)"
    )


def drop_damaged_owners(manifest: Manifest) -> None:
    """Remove the rows of `owners` that are not what was written; tenants write their own."""
    with manifest._writing() as db:
        OWNERS.drop_unsound(db)


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
