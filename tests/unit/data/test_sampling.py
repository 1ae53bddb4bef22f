import itertools

import numpy as np
import pytest

from ovbridge.data import sampling


def test_repeat_factor_is_that_of_the_rarest_class():
    # Class 0 in 4 of 4 images, class 1 in 1 of 4: sqrt(0.64 / 0.25) = 1.6.
    images = [np.array([0]), np.array([0, 0]), np.array([0, 1]), np.array([0])]
    np.testing.assert_allclose(sampling.repeat_factors(images, 0.64), [1, 1, 1.6, 1])
    assert sampling.repeat_factors([np.array([], dtype=int), np.array([0])], 0.1).tolist() == [1, 1]


def test_sources_are_drawn_in_the_given_proportion():
    weights = sampling.source_weights([np.ones(3), np.ones(5)], (1, 4))
    assert weights[:3].sum() / weights.sum() == pytest.approx(1 / 5)


def test_epochs_see_every_image_once():
    indices = list(itertools.islice(sampling.shuffled_epochs(np.ones(7), 0), 21))
    epochs = [indices[0:7], indices[7:14], indices[14:21]]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert epochs[0] != epochs[1]


def test_fractional_factors_repeat_at_random():
    stream = sampling.shuffled_epochs(np.array([1.0, 2.5]), 0)
    counts = np.bincount(list(itertools.islice(stream, 3500)))
    assert counts[1] / counts[0] == pytest.approx(2.5, abs=0.15)


def test_batches_hold_one_bucket_and_number_their_draws():
    buckets = [(0, False), (0, True), (1, False)]
    batches = list(sampling.batches(iter([0, 1, 2, 0, 2, 1, 2, 2]), buckets.__getitem__, (2, 3)))
    assert batches == [[(0, 0), (0, 3)], [(1, 1), (1, 5)], [(2, 2), (2, 4), (2, 6)]]
