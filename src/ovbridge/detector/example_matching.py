"""Classes given by example pictures beside classes given by names, in one product.

Legend: R regions, K names, E examples, D embedding. A name is compared with a region's classification embedding; an
example, embedded by CLIP's image encoder, with the embedding that distillation brought close to CLIP's (Eq. 1 of
arXiv 2207.03482). In the built-in world this finds more than comparing both with the same embedding, and more than
embedding the example by the detector itself (docs/guides/detect.md; `benchmarks/find_by_example.py` measures it).
"""

from __future__ import annotations

import torch
from torch import Tensor

EXAMPLE_SCALE = 10.0
"""Slope of the logit over the cosine: logistic regression on the built-in world's regions gave 9.8 to 10.7."""
EXAMPLE_MIDPOINT = 0.64
"""Cosine that scores 0.5: the best F1 in the built-in world, at a cosine of 0.56, then scores 0.3."""


def with_examples(
    query_RD: Tensor, distilled_RD: Tensor, text_KD: Tensor, example_ED: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Wider queries [R, 2 D + 1] and rows [K + E, 2 D + 1]: their product is every logit, less the bias.

    query_RD: scaled unit rows; distilled_RD, text_KD and example_ED: unit rows.
    """
    width = text_KD.shape[1]
    ones_R1 = query_RD.new_ones((len(query_RD), 1))
    offset = -EXAMPLE_SCALE * EXAMPLE_MIDPOINT - (0.0 if bias is None else float(bias))
    names = torch.cat([text_KD, text_KD.new_zeros((len(text_KD), width + 1))], dim=1)
    examples = torch.cat(
        [
            example_ED.new_zeros((len(example_ED), width)),
            EXAMPLE_SCALE * example_ED,
            example_ED.new_full((len(example_ED), 1), offset),
        ],
        dim=1,
    )
    return torch.cat([query_RD, distilled_RD, ones_R1], dim=1), torch.cat([names, examples])
