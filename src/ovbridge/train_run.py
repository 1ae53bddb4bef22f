"""From a RunConfig to a trained detector: opens the inputs, composes the parts, runs the loop, writes the result."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch

from ovbridge import __version__
from ovbridge.config_tree import from_json, to_json
from ovbridge.console import stderr
from ovbridge.detector import DetectorMetadata, TwoStageDetector, read_metadata, save_detector
from ovbridge.detector.checkpoint_file import backbone_trained_on
from ovbridge.errors import CheckpointError, ConfigError
from ovbridge.run_config import FREE_FIELDS, RunConfig
from ovbridge.train_preparation import loss_function, prepare_model, print_memory_line
from ovbridge.training.average import WeightAverage
from ovbridge.training.batches import build_batches
from ovbridge.training.inputs import TrainingInputs, fingerprint, open_inputs, required_paths
from ovbridge.training.loop import TrainingParts, train
from ovbridge.training.optim import build_optimizer, require_learning
from ovbridge.training.ranks import Peers, joined_run
from ovbridge.training.run_folder import RESULT_FILE, check_run_folder, claimed_run
from ovbridge.training.stages import set_training_mode
from ovbridge.training.start import starting_detector
from ovbridge.validation import Validation, check_validation

FORMAT = "ovbridge-run-1"
EXIT_REFUSED = 2
"""Exit code of the processes whose first peer refuses the run and says why."""


def train_run(config: RunConfig, out: Path, *, device: torch.device | None = None) -> Path:
    """Train what `config` describes into `out` and return `out/detector.safetensors`.

    Called again after a kill it goes on from the newest checkpoint, called on a finished run it returns at once.
    Started by torchrun or srun, this process trains together with its peers; the first one writes.
    Raises ConfigError where `out` holds another run, TrainingInterrupted after Ctrl-C (state saved), and the
    OVBridgeError of whatever input is missing or does not fit.
    """
    with joined_run() as (peers, own_device):
        return _train(config, out, device or own_device, peers)


def _train(config: RunConfig, out: Path, device: torch.device, peers: Peers) -> Path:
    inputs = open_inputs(config.data, config.stage, with_masks=config.detector.mask is not None)
    with _claimed_by_first(out, run_record(config, inputs), peers):
        result, ranks = out / RESULT_FILE, peers.ranks
        if peers.any(ranks.is_first and is_finished(out)):
            if ranks.is_first:
                stderr.print(f"{result} is there already: this run is finished")
            return result
        batches = build_batches(
            inputs,
            config.data,
            config.stage,
            config.batches,
            seed=config.seed,
            rank=ranks.rank,
            world_size=ranks.world_size,
        )
        init = Path(config.init) if config.init else None
        model = starting_detector(config.detector, config.stage, inputs.bank, init, seed=config.seed).to(device)
        require_learning(model)
        if config.loop.channels_last:
            model = model.to(memory_format=torch.channels_last)
        if ranks.is_first:
            print_memory_line(config, inputs, model, world_size=ranks.world_size)
        prepare_model(model, config, peers)
        average = WeightAverage(model, config.loop.ema_decay) if config.loop.ema_decay else None
        metadata = _metadata(config, inputs)
        parts = TrainingParts(
            model=model,
            optimizer=build_optimizer(model, config.optim),
            batches=batches,
            losses=loss_function(config, inputs),
            average=average,
            evaluate=_validation(config, out, model, metadata),
        )
        train(
            parts,
            out,
            config=config.loop,
            optim=config.optim,
            seed=config.seed,
            stage=config.stage.name,
            resume_hint="repeat the same command to go on",
            peers=peers,
        )
        if ranks.is_first:
            with average.in_place_of(model) if average is not None else nullcontext():
                save_detector(result, model, metadata)
        peers.wait()
    return result


def is_finished(out: Path) -> bool:
    """Whether a run's folder holds its result; one that is damaged is made again, and said to be."""
    if not (out / RESULT_FILE).exists():
        return False
    try:
        read_metadata(out / RESULT_FILE)
    except CheckpointError:
        stderr.print(f"warning: {out / RESULT_FILE} is damaged: it is made again from the checkpoints")
        return False
    return True


@contextmanager
def _claimed_by_first(out: Path, record: dict[str, Any], peers: Peers) -> Iterator[None]:
    """Hold the run folder in the first process, for all; the others leave quietly where it cannot be held."""
    with ExitStack() as stack:
        refusal = None
        if peers.ranks.is_first:
            try:
                stack.enter_context(claimed_run(out, record, may_differ=FREE_FIELDS, upgrade=with_new_fields))
            except ConfigError as error:
                refusal = error
        refused = peers.any(refusal is not None)
        if refusal is not None:
            raise refusal
        if refused:
            raise SystemExit(EXIT_REFUSED)
        yield


def with_new_fields(record: dict[str, Any]) -> dict[str, Any]:
    """A run's record with the settings that its version did not have yet, at their defaults."""
    try:
        return {**record, "config": to_json(from_json(RunConfig, record["config"]))}
    except ConfigError:
        return record


def _evaluates(config: RunConfig) -> bool:
    return bool(config.validation.annotations and config.loop.evaluate_every)


def _validation(config: RunConfig, out: Path, model: TwoStageDetector, metadata: DetectorMetadata) -> Validation | None:
    if not _evaluates(config):
        return None
    return Validation(
        config.validation,
        Path(config.data.root),
        out,
        model,
        metadata,
        back_to_training=lambda: set_training_mode(model, config.stage.batch_norm),
    )


def run_record(config: RunConfig, inputs: TrainingInputs) -> dict[str, Any]:
    """What makes a run this run and no other, for `config.json`: settings, and the contents of what it reads."""
    data, stage = config.data, config.stage
    return {
        "format": FORMAT,
        "version": __version__,
        "config": to_json(config),
        "inputs": {
            "vocabulary": inputs.vocabulary.to_json(),
            "text_bank": inputs.bank.digest(),
            "annotations": fingerprint(data.at(data.annotations)),
            "label_annotations": fingerprint(data.at(data.label_annotations)) if stage.image_labels else None,
            "init": fingerprint(Path(config.init)) if config.init else None,
            "teachers": inputs.origins(),
        },
    }


def _metadata(config: RunConfig, inputs: TrainingInputs) -> DetectorMetadata:
    return DetectorMetadata(
        stage=config.stage.name,
        vocabulary=tuple(inputs.vocabulary.to_json()),
        text_encoder=inputs.bank.encoder,
        templates=inputs.bank.templates,
        recipe=config.recipe,
        versions={"ovbridge": __version__},
        extra={
            "test_size": list(config.test_size),
            "seed": config.seed,
            "steps": config.loop.steps,
            "teachers": inputs.origins(),
            "backbone_trained_on": backbone_trained_on(Path(config.init)) if config.init else "",
        },
    )


def inputs_there(config: RunConfig) -> dict[str, dict[str, Any]]:
    """Every file and folder that the run reads, by the setting that names it, and whether it exists; JSON-ready."""
    paths = {field: path for field, _, path in required_paths(config.data, config.stage)}
    if config.init or config.stage.init_from != "nothing":
        paths["init"] = Path(config.init or "?")
    return {
        field: {"path": None if path.name == "?" else str(path), "exists": path.exists()}
        for field, path in paths.items()
    }


def plan_run(config: RunConfig, out: Path | None) -> dict[str, Any]:
    """What `train_run` would do, with every input opened and checked but nothing written; JSON-ready.

    Raises as `train_run` does.
    """
    inputs = open_inputs(config.data, config.stage, with_masks=config.detector.mask is not None)
    if out is not None:
        check_run_folder(out, run_record(config, inputs), may_differ=FREE_FIELDS, upgrade=with_new_fields)
    batches = build_batches(inputs, config.data, config.stage, config.batches, seed=config.seed)
    init = Path(config.init) if config.init else None
    model = starting_detector(config.detector, config.stage, inputs.bank, init, seed=config.seed)
    require_learning(model)
    if _evaluates(config):
        check_validation(config.validation, Path(config.data.root))
    learning = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return {
        "out": None if out is None else str(out),
        "finished": out is not None and is_finished(out),
        "images": dict(zip(("det", "cls"), batches.state_dict()["images"], strict=False)),
        "classes": {role: len(inputs.vocabulary.columns(role)) for role in ("base", "novel", "unused")},
        "text_encoder": inputs.bank.encoder,
        "teachers": inputs.origins(),
        "parameters": sum(p.numel() for p in model.parameters()),
        "learning_parameters": learning,
        "detector": to_json(model.config),
    }
