"""Files of a store that hold texts, or figures of one tenant; see `Place` for the contract."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

from centroidkv.bounds import MOST_TEXT_BYTES
from centroidkv.errors import CacheError
from centroidkv.kv.holdings import Holdings
from centroidkv.links import delete
from centroidkv.privacy.report import Held
from centroidkv.privacy.wanted import Wanted
from centroidkv.types import Passage
from centroidkv.vault import Vault
from centroidkv.versions.figures import FigureFile, read_figures

__all__ = ["FiguresPlace", "PassageFilePlace", "UntoldPlace", "files_set_aside"]


class FiguresPlace:
    """What requests of a tenant cost: numbers, which go with everything else."""

    name = "figures"

    def __init__(self, figures: FigureFile, folder: Path, holdings: Holdings) -> None:
        self._figures = figures
        self._folder = folder
        self._holdings = holdings

    def find(self, wanted: Wanted) -> list[Held]:
        if not wanted.everything:
            return []
        own = self._holdings.namespaces()
        return [
            Held(self.name, f.plan or f.model, "", {"requests": f.requests})
            for f in read_figures(self._folder)
            if f.model in own
        ]

    def forget(self, wanted: Wanted) -> int:
        found = self.find(wanted)
        if wanted.everything:
            self._figures.forget(self._holdings.namespaces())
        return len(found)

    def scrub(self) -> str | None:
        return None if self._figures.scrub() else "figures.sqlite is in use and keeps a rest"


class PassageFilePlace:
    """The knowledge base of a store that the command line built. It is nobody's but the store's."""

    name = "passages"

    def __init__(self, path: Path, vault: Vault) -> None:
        self._path = path
        self._vault = vault

    def find(self, wanted: Wanted) -> list[Held]:
        try:
            return [Held(self.name, p.id, p.text) for _, p in self._rows() if wanted.is_passage(p)]
        except (CacheError, UnicodeDecodeError):
            return [Held(self.name, self._path.name, "")] if wanted.before_s is None else []

    def _rows(self) -> Iterator[tuple[str, Passage]]:
        """Yield lines and what they hold.

        Raises:
            CacheError: The file is damaged, or not the store's.
            UnicodeDecodeError: It is damaged.
        """
        if not self._path.exists():
            return
        text = self._vault.read(self._path, MOST_TEXT_BYTES).decode("utf-8-sig")
        for line in text.split("\n"):
            try:
                row = json.loads(line)
                yield line, Passage(str(row.get("id", "")), str(row.get("text", "")))
            except (ValueError, AttributeError):
                continue

    def forget(self, wanted: Wanted) -> int:
        try:
            rows = list(self._rows())
        except (CacheError, UnicodeDecodeError):
            # Nothing tells what it held.
            if wanted.before_s is None:
                self._path.unlink(missing_ok=True)
            return int(wanted.before_s is None)
        kept = [line for line, passage in rows if not wanted.is_passage(passage)]
        if len(kept) < len(rows):
            self._vault.write(self._path, "".join(f"{line}\n" for line in kept).encode())
        return len(rows) - len(kept)

    def scrub(self) -> str | None:
        return None


class UntoldPlace:
    """Files of which nothing tells what they hold, so all of them go with any text.

    Args:
        name: Of the place.
        files: Lists them.
    """

    def __init__(self, name: str, files: Callable[[], list[Path]]) -> None:
        self.name = name
        self._files = files

    def find(self, wanted: Wanted) -> list[Held]:
        return [Held(self.name, path.name, "") for path in self._found(wanted)]

    def _found(self, wanted: Wanted) -> list[Path]:
        if wanted.before_s is None:
            return self._files()
        return [path for path in self._files() if path.lstat().st_mtime < wanted.before_s]

    def forget(self, wanted: Wanted) -> int:
        found = self._found(wanted)
        for path in found:
            delete(path)
        return len(found)

    def scrub(self) -> str | None:
        return None


def files_set_aside(quarantine: Path) -> list[Path]:
    """Return what was set aside; a link in that place goes, and what it leads to does not."""
    return [quarantine] if quarantine.is_symlink() else sorted(quarantine.glob("*"))
