"""Clusters that wait to be loaded ahead."""

import threading

import pytest

from centroidkv import Engine
from centroidkv.serving.prefetching import Prefetcher
from word_bank import QUESTIONS, build_and_warm


def test_a_cluster_waits_once_however_often_it_is_wanted(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[int] = []
    begun, go_on = threading.Event(), threading.Event()
    manifest = engine.store.blocks.disk.manifest
    prefixes = manifest.prefixes

    def slow(plan: str, cluster: int) -> object:
        loaded.append(cluster)
        begun.set()
        assert go_on.wait(30)
        return prefixes(plan, cluster)

    monkeypatch.setattr(manifest, "prefixes", slow)
    prefetcher = Prefetcher(engine.store.blocks)
    prefetcher.begin("n", "p", 0)
    assert begun.wait(30)
    for cluster in [1, 2, 1, 0, 2, 1, 0]:  # 0 is being loaded, not waiting: it may have changed
        prefetcher.begin("n", "p", cluster)
    go_on.set()
    prefetcher._threads.shutdown(wait=True)
    assert loaded == [0, 1, 2, 0]


def test_a_cluster_is_loaded_again_after_it_was(engine: Engine) -> None:
    build_and_warm(engine)
    plan, cluster = engine.router.plan, engine.route(QUESTIONS[0]).cluster
    assert plan is not None and cluster is not None
    namespace, blocks = engine._learner.namespace, engine.store.blocks
    held = {r.block for r in blocks.disk.manifest.prefixes(plan.id, cluster.id)}
    assert held
    prefetcher = Prefetcher(blocks)
    for _ in range(2):
        for block in held:
            blocks.memory.delete(block)
        prefetcher.begin(namespace, plan.id, cluster.id)
        prefetcher._threads.submit(lambda: None).result(30)
        assert all(blocks.memory.has(block) for block in held)
    prefetcher.close()
