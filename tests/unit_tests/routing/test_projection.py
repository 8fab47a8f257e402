"""PCA as a linear map, and the map that changes nothing."""

import numpy as np
import pytest

from centroidkv.routing.projection import Projection, fit_projection, identity


def vectors(count: int, dim: int, *, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, dim)).astype(np.float32)


def test_it_is_scikit_learns_pca() -> None:
    from sklearn.decomposition import PCA

    points = vectors(50, 12)
    expected = PCA(n_components=5, random_state=0).fit(points).transform(points)
    reduced = fit_projection(points, dim=5, seed=0).transform(points)
    assert reduced.dtype == np.float32
    np.testing.assert_allclose(reduced, expected, atol=1e-5)


def test_it_is_linear_so_the_mean_of_the_reduced_is_the_reduced_mean() -> None:
    points = vectors(30, 8)
    projection = fit_projection(points, dim=4, seed=0)
    mean = projection.transform(points.mean(0, keepdims=True))[0]
    np.testing.assert_allclose(projection.transform(points).mean(0), mean, atol=1e-5)


@pytest.mark.parametrize(
    ("count", "dim", "wanted", "got"), [(50, 12, 32, 12), (5, 12, 32, 4), (2, 12, 3, 1)]
)
def test_there_are_never_more_dimensions_than_the_data_has(count, dim, wanted, got) -> None:
    points = vectors(count, dim)
    assert fit_projection(points, dim=wanted, seed=0).transform(points).shape == (count, got)


def test_a_single_question_is_not_reduced() -> None:
    point = vectors(1, 6)
    projection = fit_projection(point, dim=4, seed=0)
    assert projection.is_identity
    assert projection.transform(point) is point


def test_equal_questions_can_be_fitted() -> None:
    points = np.ones((5, 6), np.float32)
    reduced = fit_projection(points, dim=3, seed=0).transform(points)
    assert np.isfinite(reduced).all()


def test_the_identity_changes_nothing() -> None:
    points = vectors(3, 4)
    assert identity().is_identity and identity().transform(points) is points
    assert not Projection(np.zeros(4, np.float32), np.eye(4, dtype=np.float32)).is_identity


def test_fitting_again_gives_the_same_numbers() -> None:
    points = vectors(40, 10)
    one, other = (fit_projection(points, dim=4, seed=3) for _ in range(2))
    assert one.components.tobytes() == other.components.tobytes()
