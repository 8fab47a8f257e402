"""Domains: learnt where they are missing, clustered apart, with settings of their own."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from centroidkv.errors import ConfigError
from centroidkv.plan_config import PlanConfig
from centroidkv.routing.domains import complete_domains, domain_configs
from centroidkv.routing.embedded_chroma import EmbeddedChroma
from centroidkv.routing.history import Seen
from centroidkv.routing.memory_index import MemoryIndex
from centroidkv.routing.plan import Plan, load_plan, save_plan
from centroidkv.types import Passage
from centroidkv.versions.fitting import fit_plan
from small_parts import HashEmbedder

WORDS = {
    "cards": "card pin chip contactless limit lost",
    "loans": "loan rate mortgage repay term early",
    "funds": "fund share dividend index bond price",
}
PASSAGES = [Passage.of(f"{d} {w} " * 5) for d, words in WORDS.items() for w in words.split()]
KNOWN = {p.id: p for p in PASSAGES}


def asked(count: int = 60, *, seed: int = 0) -> tuple[list[Seen], dict[str, str]]:
    """Questions of three domains in turn, each with the passages that share its words."""
    random = np.random.default_rng(seed)
    texts: dict[str, str] = {}
    while len(texts) < count:
        domain = list(WORDS)[len(texts) % 3]
        chosen = random.choice(WORDS[domain].split(), 2, replace=False)
        texts[f"about {' '.join(chosen)} {len(texts)}"] = domain
    vectors = HashEmbedder().embed(list(texts))
    seen = []
    for text, vector in zip(texts, vectors, strict=True):
        found = [p.id for p in PASSAGES if p.text.split()[1] in text.split()]
        seen.append(Seen(text, vector, tuple(found)))
    return seen, texts


def fit(seen: list[Seen], domains: dict[str, str], settings: object = None, **options: object):
    return fit_plan(
        seen,
        KNOWN,
        PlanConfig.of({"pca_dim": 8, "num_clusters": 9, **options}),
        namespace="f" * 64,
        count_tokens=lambda text: len(text.split()),
        domains=domains,
        domain_settings=settings,
    )


# learning what is missing


def test_a_question_without_a_domain_gets_that_of_its_neighbours() -> None:
    seen, domains = asked(90)
    vectors = np.stack([s.embedding for s in seen])
    given_ = [d if i % 3 or i < 30 else "" for i, d in enumerate(domains.values())]
    learnt = complete_domains(vectors, given_)
    missing = [i for i, d in enumerate(given_) if not d]
    right = [learnt[i] == list(domains.values())[i] for i in missing]
    assert len(missing) == 20 and np.mean(right) > 0.9
    assert all(a == b for a, b in zip(learnt, given_, strict=True) if b), "given ones stay"


def test_with_no_domain_at_all_none_is_made_up() -> None:
    vectors = HashEmbedder().embed(["a", "b"])
    assert complete_domains(vectors, ["", ""]) == ["", ""]
    assert complete_domains(vectors, ["x", ""]) == ["x", "x"]


# what a domain may have


@given(
    st.lists(st.sampled_from("abcd"), min_size=1, max_size=60), st.integers(1, 80), st.integers(0)
)
def test_the_clusters_are_shared_out_whole(domains: list[str], total: int, seed: int) -> None:
    vectors = np.random.default_rng(seed % 1000).standard_normal((len(domains), 4))
    config = PlanConfig(num_clusters=total)
    configs = domain_configs(config, vectors.astype(np.float32), domains, None)
    numbers = [c.num_clusters for c in configs.values()]
    assert list(configs) == sorted(set(domains))
    assert all(isinstance(n, int) and n >= 1 for n in numbers)
    spread = [d for d in configs if len({tuple(v) for v in vectors[np.array(domains) == d]}) > 1]
    if total >= len(configs) and spread:
        assert sum(numbers) == total
    elif total < len(configs):
        assert set(numbers) == {1}


def test_a_domain_with_settings_of_its_own_is_left_out_of_the_sharing() -> None:
    seen, domains = asked()
    settings = {"loans": {"num_clusters": 2, "max_pins": 1}}
    plan = fit(seen, domains, settings, max_pins=4)
    by_domain = Counter(c.domain for c in plan.clusters)
    assert by_domain["loans"] == 2 and sum(by_domain.values()) == 9
    assert {len(c.pins) for c in plan.clusters if c.domain == "loans"} == {1}
    assert max(len(c.pins) for c in plan.clusters if c.domain != "loans") > 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lones": {}}, r"'lones', which no question belongs to \(domains: cards, funds, loans\)"),
        ({"loans": {"pins": 3}}, "of 'loans': unknown setting pins; known: num_clusters"),
        ({"loans": {"pca_dim": 3}}, "unknown setting pca_dim"),
        ({"loans": {"kv_budget_bytes": -1}}, "must be a number of bytes"),
        ({"loans": {"kv_budget_bytes": True}}, "must be a number of bytes"),
        ({"loans": {"max_pins": 0}}, "max_pins must be a whole number"),
    ],
)
def test_what_is_wrong_with_the_settings_is_named(settings: object, message: str) -> None:
    seen, domains = asked()
    with pytest.raises(ConfigError, match=message):
        fit(seen, domains, settings)


def test_settings_without_any_domain_say_how_to_give_one() -> None:
    seen, domains = asked()
    with pytest.raises(ConfigError, match=r"give build\(domains=\.\.\.\)"):
        fit(seen, dict.fromkeys(domains, ""), {"loans": {}})


# clusters


def test_every_domain_is_clustered_apart() -> None:
    seen, domains = asked()
    plan = fit(seen, domains)
    assert {c.domain for c in plan.clusters} == set(WORDS)
    assert sum(c.num_members for c in plan.clusters) == len(seen)
    for cluster in plan.clusters:
        assert {domains[q] for q in cluster.members} == {cluster.domain}


def test_a_domain_with_one_question_has_a_cluster_with_a_radius() -> None:
    seen, domains = asked()
    (plain,) = [c for c in fit(seen, dict.fromkeys(domains, "")).clusters if c.id == 0]
    domains[seen[0].question] = "a lonely one"
    plan = fit(seen, domains)
    (cluster,) = [c for c in plan.clusters if c.domain == "a lonely one"]
    assert (cluster.num_members, cluster.representative) == (1, seen[0].question)
    assert cluster.radius > 0 and plain.radius > 0


def test_a_cluster_serves_the_other_domains_whose_questions_come_to_it() -> None:
    seen, domains = asked()
    # One loan question was put down as a card question.
    stray = next(q for q, d in domains.items() if d == "loans")
    domains[stray] = "cards"
    plan = fit(seen, domains, {"cards": {"num_clusters": 1}})
    reduced = plan.projection.transform(np.stack([s.embedding for s in seen]))
    index = MemoryIndex()
    index.put(plan.clusters, plan.reduced())
    for place, s in enumerate(seen):
        nearest = plan.clusters[index.nearest(reduced[place])]
        own = plan.clusters[index.nearest(reduced[place], domains[s.question])]
        assert nearest is own, "what a past question is nearest to serves its domain"
    hosts = [c for c in plan.clusters if c.domain == "loans" and "cards" in c.guests]
    assert len(hosts) == 1


def test_a_plan_file_keeps_domains_guests_and_settings(tmp_path: Path) -> None:
    seen, domains = asked()
    plan = fit(seen, domains, {"loans": {"kv_budget_bytes": 5, "max_pins": 2}})
    save_plan(plan, tmp_path / "a.plan")
    loaded = load_plan(tmp_path / "a.plan")
    assert loaded.is_same_as(plan)
    assert [(c.domain, c.guests) for c in loaded.clusters] == [
        (c.domain, c.guests) for c in plan.clusters
    ]
    assert loaded.kv_budget_bytes("loans") == 5 and loaded.kv_budget_bytes("cards") is None
    assert loaded.domain_settings["loans"]["max_pins"] == 2


# the lookup


@pytest.fixture
def both(tmp_path: Path):
    seen, domains = asked()
    plan: Plan = fit(seen, domains)
    memory = MemoryIndex()
    memory.put(plan.clusters, plan.reduced())
    chroma = EmbeddedChroma(tmp_path / "chroma", quarantine=tmp_path / "q").open(plan)
    yield plan, memory, chroma, plan.projection.transform(np.stack([s.embedding for s in seen]))
    chroma.close()


def test_one_query_finds_the_nearest_cluster_that_serves_a_domain(both) -> None:
    plan, memory, chroma, questions = both
    for vector in questions[:20]:
        for domain in [None, *WORDS, "no such domain"]:
            serving = [c.id for c in plan.clusters if domain in (None, c.domain, *c.guests)]
            far = np.linalg.norm(plan.reduced() - vector, axis=1)
            expected = min(serving, key=lambda c: far[c], default=None)
            assert memory.nearest(vector, domain) == expected
            assert chroma.nearest(vector, domain) == expected


def test_a_domain_may_have_any_name(tmp_path: Path) -> None:
    seen, domains = asked(30)
    names = {"cards": "대출 🏦", "loans": "serves:$and", "funds": "a b"}
    plan = fit(seen, {q: names[d] for q, d in domains.items()})
    index = EmbeddedChroma(tmp_path / "chroma", quarantine=tmp_path / "q").open(plan)
    vector = plan.reduced()[0]
    for name in names.values():
        assert plan.clusters[index.nearest(vector, name)].domain == name
    index.close()
