"""KV as a place that holds texts: chains of blocks are decoded and searched, in every tier.

From the first block that holds any of what is wanted, everything behind it goes too. Blocks of
another model cannot be read here; they are taken for a match, since computing them again only
costs time.
"""

import bisect
from collections.abc import Iterator, Sequence

from centroidkv.kv.blocks import is_root
from centroidkv.kv.holdings import Holdings, Node
from centroidkv.models.detokenizing import text_of
from centroidkv.privacy.report import Held
from centroidkv.privacy.wanted import Wanted, plain
from centroidkv.protocols import CausalModel

__all__ = ["BlocksPlace"]


class BlocksPlace:
    """The KV of one tenant, in memory, on disk and on the remote. See `Place`."""

    name = "blocks"

    def __init__(self, holdings: Holdings, model: CausalModel) -> None:
        self._holdings = holdings
        self._model = model

    def find(self, wanted: Wanted) -> list[Held]:
        found, models = self._found(wanted), self._holdings.namespaces()
        return [
            Held(
                self.name,
                node.id,
                self._text([node]) or "",
                {
                    "num_tokens": len(node.token_ids),
                    "tiers": list(node.tiers),
                    "is_readable": self._is_readable(node, models),
                },
            )
            for node in found
        ]

    def forget(self, wanted: Wanted) -> int:
        try:
            found = self._found(wanted)
        except OSError:
            # What is here goes, whatever the remote does.
            self._holdings.erase(self._found(wanted, with_remote=False))
            raise
        self._holdings.erase(found)
        return len(found)

    def scrub(self) -> str | None:
        return None if self._holdings.scrub() else "manifest.sqlite is in use and keeps a rest"

    def _found(self, wanted: Wanted, *, with_remote: bool = True) -> list[Node]:
        if wanted.before_s is not None and not self._holdings.has_older(wanted.before_s):
            return []
        nodes = self._holdings.nodes(with_remote=with_remote and wanted.before_s is None)
        if wanted.everything:
            return list(nodes.values())
        tree = _Tree(nodes)
        if wanted.before_s is not None:
            return tree.unused_since(wanted.before_s)
        models = self._holdings.namespaces()
        starts: set[str] = set()
        for path in tree.paths():
            first = self._first(path, wanted, models)
            if first is not None:
                starts.add(path[first].id)
        return tree.behind(starts)

    def _first(self, path: Sequence[Node], wanted: Wanted, models: dict[str, str]) -> int | None:
        """Return the number of the first block of a chain that holds any of what is wanted."""
        if not self._is_readable(path[0], models):
            return 0
        if not wanted.is_in(self._text(path) or ""):
            return self._first_of_a_part(path, wanted)
        numbers = range(len(path))
        # The first end of it, and from there the last beginning: both are found by halving.
        end = bisect.bisect(numbers, 0, key=lambda n: wanted.is_in(self._text(path[: n + 1]) or ""))
        within = path[: end + 1]
        return (
            bisect.bisect(
                numbers[: end + 1], 0, key=lambda n: not wanted.is_in(self._text(within[n:]) or "")
            )
            - 1
        )

    def _first_of_a_part(self, path: Sequence[Node], wanted: Wanted) -> int | None:
        """Look for what the chain has only the beginning, or behind a gap only the end, of.

        A passage that is kept for itself may lack both: a token over its border is not its own.
        """
        text = self._text(path) or ""
        if wanted.is_around(text):
            return 0
        if not is_root(path[0].parent) and wanted.is_continued_in(text):
            return 0
        cut = wanted.cut_off_in(text)
        if not cut:
            return None
        # Where a text repeats its own beginning, a shorter one would leave the rest in front of it.
        ends = (n for n in range(len(path) - 1, -1, -1))
        return next((n for n in ends if plain(self._text(path[n:]) or "").endswith(cut)), 0)

    def _is_readable(self, node: Node, models: dict[str, str]) -> bool:
        model = models.get(node.namespace, self._model.fingerprint)
        is_whole = bool(node.token_ids) and self._text([node]) is not None
        return is_whole and model == self._model.fingerprint

    def _text(self, path: Sequence[Node]) -> str | None:
        return text_of(self._model, [token for node in path for token in node.token_ids])


class _Tree:
    """Blocks as chains."""

    def __init__(self, nodes: dict[str, Node]) -> None:
        self._nodes = nodes
        self._children: dict[str, list[str]] = {}
        for node in nodes.values():
            self._children.setdefault(node.parent, []).append(node.id)

    def paths(self) -> Iterator[list[Node]]:
        """Yield every chain from its first block that is there to its last."""
        for node in self._nodes.values():
            if node.id not in self._children:
                yield self._path_to(node)

    def _path_to(self, node: Node) -> list[Node]:
        path = [node]
        while (above := self._nodes.get(path[-1].parent)) is not None:
            path.append(above)
        return path[::-1]

    def behind(self, starts: set[str]) -> list[Node]:
        """Return blocks and all that continues them, each once."""
        found: dict[str, Node] = {}
        waiting = list(starts)
        while waiting:
            block = waiting.pop()
            if block not in found:
                found[block] = self._nodes[block]
                waiting += self._children.get(block, [])
        return list(found.values())

    def unused_since(self, before_s: float) -> list[Node]:
        """Return blocks that were last used before a time, as was all that continues them."""
        kept: set[str] = set()
        for node in self._nodes.values():
            if node.used_s >= before_s:
                kept |= {above.id for above in self._path_to(node)}
        return [node for node in self._nodes.values() if node.id not in kept]
