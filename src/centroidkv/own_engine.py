"""The engine of a framework's model: the one it was given, or one that it opens for itself.

Frameworks copy a model for the settings of a call by constructing it anew from its fields. Owns
what an engine was opened for, so that such a copy goes on with it and opens none.
"""

from weakref import WeakKeyDictionary

from centroidkv.engine import DEFAULT_MODEL, Engine
from centroidkv.errors import ConfigError

__all__ = ["engine_of_fields"]

_opened_for: WeakKeyDictionary[Engine, tuple[str | None, str | None, str]] = WeakKeyDictionary()


def engine_of_fields(
    kind: str, engine: Engine | None, *, model: str | None, store: str | None, embedder: str
) -> Engine:
    """Return `engine`, or open one.

    Args:
        kind: Name of the model's class, for messages.
        engine: What was given, or what the model that is copied has opened.
        model: What `Engine.open` takes, None for its default.
        store: The store folder.
        embedder: What `Engine.open` takes.

    Raises:
        ConfigError: There is neither engine nor store, or both.
    """
    wanted = (model, store, embedder)
    if engine is None:
        if not store:
            raise ConfigError(f"{kind} needs engine=..., or model=... and store=...")
        opened = Engine.open(store, model=model or DEFAULT_MODEL, embedder=embedder)
        _opened_for[opened] = wanted
        return opened
    known = _opened_for.get(engine)
    if known == wanted or not (model or store):
        return engine
    if known is not None:
        raise ConfigError(
            f"this {kind} has opened an engine with model={known[0]!r}, store={known[1]!r} and "
            f"embedder={known[2]!r}, which cannot be others for one call: make a model for each, "
            "with engine=..., and choose between them (in LangChain by configurable_alternatives)"
        )
    raise ConfigError(f"give {kind} either engine=... or model=... and store=...")
