"""How exactly KV is kept: raw, or coded at one or several levels; part of the KV namespace.

Knows the names of the levels, not how they code and not who approved them.
"""

from dataclasses import dataclass

from centroidkv.errors import ConfigError
from centroidkv.kv.blocks import namespace_id
from centroidkv.kv.codec import LEVELS

__all__ = ["RAW_PRECISION", "Precision", "named_precision"]


@dataclass(frozen=True, slots=True)
class Precision:
    """The levels that new KV is kept at, finest first; the disk has the finest."""

    levels: tuple[str, ...] = ("raw",)

    @property
    def name(self) -> str:
        return "+".join(self.levels)

    @property
    def is_raw(self) -> bool:
        return self.levels == ("raw",)

    @property
    def lossy(self) -> tuple[str, ...]:
        """The levels that a codec report has to approve."""
        return tuple(level for level in self.levels if level != "raw")

    def namespace(self, model: str, tenant: str) -> str:
        """Return the KV namespace of a model's fingerprint and a tenant.

        That of raw KV is what it was before there were levels, so older stores still hit.
        """
        return namespace_id("kv", model, tenant, *([] if self.is_raw else [self.name]))


RAW_PRECISION = Precision()


def named_precision(name: str) -> Precision:
    """Return what a setting such as `q8` or `q8+q4` names.

    Raises:
        ConfigError: There is no such level, or the order is another.
    """
    levels = tuple(name.split("+"))
    unknown = [level for level in levels if level not in LEVELS]
    if unknown:
        raise ConfigError(
            f"kv_precision={name!r}: there is no level {', '.join(map(repr, unknown))}; "
            f"known: {', '.join(LEVELS)}"
        )
    places = [LEVELS.index(level) for level in levels]
    if places != sorted(set(places)):
        ordered = "+".join(LEVELS[i] for i in sorted(set(places)))
        raise ConfigError(f"kv_precision={name!r}: give each level once, finest first: {ordered!r}")
    return Precision(levels)
