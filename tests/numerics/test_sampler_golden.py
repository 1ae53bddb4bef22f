"""Our sample order against the official multi-source sampler's: weights, drawn indices, batches."""

import itertools
import json
import math

import numpy as np
import pytest

from ovbridge.data import sampling


@pytest.fixture
def golden(goldens):
    return json.loads((goldens / "sampler.json").read_text())


def _factors(items, threshold):
    det = [np.array(i["classes"]) for i in items if i["dataset_source"] == 0]
    n_cls = sum(i["dataset_source"] == 1 for i in items)
    det_factors = np.ones(len(det)) if threshold is None else sampling.repeat_factors(det, threshold)
    return [det_factors, np.ones(n_cls)]


@pytest.mark.parametrize(("case", "threshold"), [("coco_style", None), ("lvis_style_rfs", 0.3)])
def test_weights_draws_and_batches(golden, case, threshold):
    expected, items = golden[case], golden["items"]
    weights = sampling.source_weights(_factors(items, threshold), (1, 4))
    np.testing.assert_allclose(weights.numpy(), expected["weights"], rtol=1e-6)

    draws = list(itertools.islice(sampling.weighted_draws(weights, 123), 200))
    assert draws == expected["first_200_indices_seed123"]

    buckets = {k: (i["dataset_source"], i["width"] > i["height"]) for k, i in enumerate(items)}
    batches = list(sampling.batches(iter(draws), buckets.__getitem__, (2, 8)))
    assert [[index for index, _ in batch] for batch in batches] == expected["batches_2_8"]
    kinds = [buckets[batch[0][0]][0] for batch in batches]
    assert [kinds.count(0), kinds.count(1)] == expected["batches_per_source"]


def test_one_to_four_with_batches_of_two_and_eight_gives_as_many_of_each():
    factors = [np.ones(30), np.ones(70)]
    draws = sampling.weighted_draws(sampling.source_weights(factors, (1, 4)), 0)
    stream = sampling.batches(draws, lambda i: (int(i >= 30), False), (2, 8))
    kinds = [batch[0][0] >= 30 for batch in itertools.islice(stream, 4000)]
    # Binomial with p = 1/2: five standard deviations.
    assert abs(np.mean(kinds) - 0.5) < 5 * 0.5 / math.sqrt(4000)
