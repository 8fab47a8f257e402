"""The race: all peers loaded, one at work, the others blocked on their pipes; rows to a file.

Whose turn is first moves on by one from round to round. A row is written as soon as it is
measured, so a run that was stopped goes on where it was.
"""

import json
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from peers.roster import Peer, Way
from peers.wire import PeerFailed, Remote, Row
from peers.workloads import Request, Workload

PAUSE_S = 0.05  # until the threads of the one before have gone to sleep

__all__ = ["Race", "read_rows", "rotated"]


def read_rows(path: Path) -> list[Row]:
    """Return the rows of a JSON-lines file; a line that was cut off is left out."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_text("utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows


def rotated(ways: Sequence[Way], by: int) -> list[Way]:
    """Return the ways in order, another one first."""
    start = by % len(ways) if ways else 0
    return [*ways[start:], *ways[:start]]


class Race:
    """Runs the ways of one workload.

    Args:
        workload: What is asked.
        ways: Who is asked what. Those whose environment is absent are left out.
        work: Folder for rows, stores and logs.
        plan: The store with the workload's plan.
        common: Settings that every peer gets: `model`, `gguf`, `threads`.
        envs: Folder of the peers' environments.
    """

    def __init__(
        self,
        workload: Workload,
        ways: Sequence[Way],
        *,
        work: Path,
        plan: Path,
        common: dict[str, Any],
        envs: Path,
    ) -> None:
        self.workload = workload
        self.path = work / f"{workload.name}.jsonl"
        self._work, self._plan, self._common, self._envs = work, plan, common, envs
        self._remotes: dict[str, Remote] = {}
        self._reported: set[str] = set()
        self.ways = [w for w in ways if self._can_run(w.peer)]
        rows = read_rows(self.path)
        self._done = {(r["round"], r["way"]) for r in rows if "round" in r}

    def _can_run(self, peer: Peer) -> bool:
        reason = peer.absent(self._envs)
        if reason is not None and peer.name not in self._reported:
            self._reported.add(peer.name)
            print(f"  {peer.name} is left out: {reason}", flush=True)
        return reason is None

    def run(self, rounds: int) -> None:
        """Run the rounds that are not there yet; open only who is needed for them."""
        todo = [(n, way) for n in range(rounds) for way in self._turns(n)]
        todo = [(n, way) for n, way in todo if (n, way.name) not in self._done]
        if not todo:
            print("  all rounds are there already")
            return
        try:
            for way in {w.peer.name: w for _, w in todo}.values():
                self._open(way.peer)
            for number, way in todo:
                if way.peer.name in self._remotes:
                    self._ask(number, way)
            self._finish()
        finally:
            for remote in self._remotes.values():
                remote.close()
            self._remotes.clear()

    def _turns(self, number: int) -> Iterator[Way]:
        due = [w for w in self.ways if number % w.every == 0]
        for turn in (0, 1):
            yield from rotated([w for w in due if w.turn == turn], number)

    def _open(self, peer: Peer) -> None:
        """Load a peer, let it run once before any clock, and let it prepare."""
        own = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
        env = {**os.environ, "OMP_NUM_THREADS": str(self._common["threads"]),
               "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1",
               "PYTHONPATH": os.pathsep.join(filter(None, own))}  # fmt: skip
        settings = peer.settings(self._common, self._work, self._plan)
        log = self._work / "logs" / f"{self.workload.name}-{peer.module}-{len(self._remotes)}.log"
        try:
            remote = Remote(peer.name, peer.command(self._envs), settings, env=env, log=log)
            self._remotes[peer.name] = remote
            remote.call("ask", **self.workload.wake, max_tokens=4)
            prepare_s = sum(self._prepared(remote, peer))
        except PeerFailed as error:
            print(f"  {peer.name} is left out: {error}", flush=True)
            self._drop(peer)
            return
        self._write({
            "peer": peer.name, "loading_s": remote.loading_s, "prepare_s": prepare_s,
            **remote.opened,
        })  # fmt: skip

    def _prepared(self, remote: Remote, peer: Peer) -> Iterator[float]:
        if peer.module in ("plain", "hf_pipeline"):
            return  # they keep nothing
        # CAG has one context at a time, and loads the one it needs before each question.
        for request in self.workload.warm[: 1 if peer.module == "cag" else None]:
            yield float(remote.call("warm", **request)["seconds"])
        if peer.module == "our_answers":
            for kept, _ in self.workload.pairs:
                yield float(remote.call("keep", **kept, max_tokens=64)["seconds"])

    def _ask(self, number: int, way: Way) -> None:
        time.sleep(PAUSE_S)
        remote, request = self._remotes[way.peer.name], self._request(way, number)
        asked = {**request, "max_tokens": way.max_tokens or self.workload.max_tokens}
        row: Row = {"round": number, "way": way.name, "peer": way.peer.name}
        try:
            if way.peer.module == "cag":
                row["prepare_s"] = remote.call("warm", **request)["seconds"]
            row |= remote.call(way.op, **asked, **way.arguments)
        except PeerFailed as error:
            print(f"  {way.name}, round {number}: {error}", flush=True)
            self._drop(way.peer)
            return
        self._write({**row, "question": request["question"], "context": request["context"]})

    def _request(self, way: Way, number: int) -> Request:
        if way.source == "pairs":
            return self.workload.pairs[number % len(self.workload.pairs)][1]
        listed: list[Request] = getattr(self.workload, way.source)
        return listed[number % len(listed)]

    def _finish(self) -> None:
        """Ask once at the end what is no matter of rounds."""
        for name, remote in self._remotes.items():
            asked: Row = {}
            if name == "our answers" and self.workload.pairs:
                seconds = [second for _, second in self.workload.pairs]
                asked = {"op": "per_second", "requests": seconds, "max_tokens": 64, "seconds": 3.0}
            elif name == "HuggingFacePipeline" and self.workload.pairs:
                kept, other = self.workload.pairs[0]
                asked = {"op": "paraphrase", "kept": kept["text"], "text": other["text"]}
            elif name.startswith("ours"):
                asked = {"op": "sizes"}
            if asked:
                self._write({"peer": name, **remote.call(**asked)})

    def _drop(self, peer: Peer) -> None:
        remote = self._remotes.pop(peer.name, None)
        if remote is not None:
            remote.close()

    def _write(self, row: Row) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def rounds_of(rows: Iterable[Row]) -> int:
    """Count the rounds that rows tell of."""
    return len({r["round"] for r in rows if "round" in r})
