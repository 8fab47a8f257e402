"""Foreign questions stay out while those of the bank come in, with real questions and vectors."""

import json
from pathlib import Path

import numpy as np
import pytest

from centroidkv.plan_config import PlanConfig
from centroidkv.routing.embedder import SentenceBertEmbedder
from centroidkv.routing.history import Seen
from centroidkv.versions.fitting import fit_plan

DATA = Path(__file__).parents[3] / "shared/data/clinc150"

pytestmark = pytest.mark.skipif(not DATA.exists(), reason=f"CLINC150 is not at {DATA}")


def texts(name: str, step: int) -> list[str]:
    lines = (DATA / f"{name}.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line)["text"] for line in lines][::step]


def test_the_default_radii_admit_the_bank_and_hardly_anything_else(
    minilm: SentenceBertEmbedder,
) -> None:
    past = texts("train", 5)
    seen = [Seen(q, v, ()) for q, v in zip(past, minilm.embed(past), strict=True)]
    plan = fit_plan(seen, {}, PlanConfig(), namespace="f" * 64, count_tokens=len)
    ratio = {}
    for name, step in (("val", 3), ("oos_train", 1), ("oos_val", 1)):
        vectors = minilm.embed(texts(name, step))
        reduced = plan.projection.transform(vectors)
        near = ((reduced[:, None] - plan.reduced()) ** 2).sum(2).argmin(1)
        centroids = np.stack([c.centroid for c in plan.clusters])[near]
        limits = np.array([c.radius for c in plan.clusters])[near]
        ratio[name] = np.linalg.norm(vectors - centroids, axis=1) / limits
    foreign = np.concatenate([ratio["oos_train"], ratio["oos_val"]])
    at_95 = np.quantile(ratio["val"], 0.95)
    assert (ratio["val"] <= 1).mean() >= 0.9
    assert (foreign <= at_95).mean() <= 0.02
