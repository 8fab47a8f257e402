"""Looking for what files hold."""

from pathlib import Path

from centroidkv import Engine

__all__ = ["tokens_of", "traces"]


def traces(folder: Path, text: str) -> list[str]:
    """Name the files that hold a text, as it is or as JSON."""
    needle = text.encode()
    return [str(f) for f in folder.rglob("*") if f.is_file() and needle in f.read_bytes()]


def tokens_of(engine: Engine, text: str) -> bytes:
    """Return a text as the manifest keeps its tokens (each byte is one)."""
    ids = engine.model.encode(text, chat_template=False).token_ids
    return b"".join(i.to_bytes(4, "big") for i in ids if i < 256)
