"""The stages of training: what each loads, what it freezes, which losses it adds (arXiv 2207.03482, §3 and Table 1).

The released runs start RKD, PIS and the naive RKD+PIS from the base checkpoint and the weight transfer from RKD,
so the last has three schedules of training behind it where the naive one has two.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import nn

from ovbridge.errors import ConfigError

StageName = Literal["base", "rkd", "pis", "rkd_pis", "rkd_pis_wt"]
BatchNormMode = Literal["train", "frozen"]

TRANSFER_FROZEN = ("roi_head.projection.linear",)
"""W_D, weight and bias: frozen while the weight transfer learns from it, so the RKD losses reach only the features."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage of training."""

    name: str
    """One of the paper's five, or a name of your own for a control run."""
    init_from: Literal["nothing", "base", "rkd", "pis", "rkd_pis", "rkd_pis_wt", "any"] = "nothing"
    """Stage whose checkpoint it starts from; "any" takes whatever is given."""
    region_distillation: bool = False
    """Adds the RKD losses (Eq. 1 and 2) to every batch whose images carry region targets."""
    image_labels: bool = False
    """Mixes in batches that carry image labels only, with the pseudo-box loss (Eq. 4)."""
    projection: Literal["linear", "transfer"] = "linear"
    """Region features → text space: one linear layer, or W_P = W_T(W_D) with a residual branch."""
    frozen: tuple[str, ...] = ()
    """Modules that do not learn, by name; everything below them is frozen, weights and biases."""
    batch_norm: BatchNormMode = "frozen"
    """"train": statistics and affine learn (from scratch). "frozen": they stay as loaded, as in the released runs."""


STAGES: dict[str, Stage] = {
    stage.name: stage
    for stage in (
        Stage(name="base"),
        Stage(name="rkd", init_from="base", region_distillation=True),
        Stage(name="pis", init_from="base", image_labels=True),
        Stage(name="rkd_pis", init_from="base", region_distillation=True, image_labels=True),
        Stage(
            name="rkd_pis_wt",
            init_from="rkd",
            region_distillation=True,
            image_labels=True,
            projection="transfer",
            frozen=TRANSFER_FROZEN,
        ),
    )
}


def stage_named(name: str) -> Stage:
    """The paper's stage of that name; raises ConfigError listing the known ones."""
    try:
        return STAGES[name]
    except KeyError:
        near = difflib.get_close_matches(name, STAGES, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ConfigError(f"there is no stage {name!r}: {hint}Known stages: {', '.join(STAGES)}") from None


def freeze(model: nn.Module, frozen: Sequence[str]) -> None:
    """Take the named modules (or single parameters) out of training, in place.

    Raises ConfigError for a name that matches nothing: a freeze that freezes nothing must not pass unseen.
    """
    for name in frozen:
        hit = [p for path, p in model.named_parameters() if path == name or path.startswith(name + ".")]
        if not hit:
            raise ConfigError(
                f"stage.frozen names {name!r}, which the detector does not have: see 'ovbridge train --dry-run'"
            )
        for parameter in hit:
            parameter.requires_grad_(False)


def set_training_mode(model: nn.Module, batch_norm: BatchNormMode) -> None:
    """`model.train()`, except that frozen batch norms keep their running statistics and stop learning."""
    model.train()
    if batch_norm == "train":
        return
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad_(False)


def check_initial_stage(stage: Stage, found: str, checkpoint: str) -> None:
    """Refuse a checkpoint of a stage that this one does not start from; raises ConfigError."""
    if stage.init_from not in ("any", found):
        raise ConfigError(
            f"stage {stage.name} starts from a {stage.init_from!r} checkpoint, {checkpoint} is {found!r}: "
            f"give another --init, or --set stage.init_from={found}"
        )
