"""Detectors on the Hugging Face hub: fetch one, publish one with a model card made from its results.

The hub's client is an optional extra and is imported only here, when it is needed.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ovbridge.detector import DetectorConfig, DetectorMetadata, TwoStageDetector, save_detector
from ovbridge.errors import CheckpointError

_ADDRESS = re.compile(r"hf://(?P<repository>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?/?")
_NO_CLIENT = "the hub needs its client: pip install 'ovbridge[hf]'"
_NAMES_IN_CARD = 100


def fetch_checkpoint(address: str, filename: str) -> Path:
    """The local copy of `filename` in "hf://owner/name" or "hf://owner/name@revision".

    Raises CheckpointError in one line: no such form, no client, no network, no such repository or file.
    """
    match = _ADDRESS.fullmatch(address)
    if match is None:
        raise CheckpointError(f"{address} is no hub address: write hf://owner/name or hf://owner/name@revision")
    try:
        from huggingface_hub import hf_hub_download
    except ImportError:
        raise CheckpointError(_NO_CLIENT) from None
    try:
        return Path(hf_hub_download(match["repository"], filename, revision=match["revision"]))
    except Exception as error:  # The hub's client has no common base for network, name and permission errors.
        raise CheckpointError(
            f"cannot fetch {filename} from {address} ({_reason(error)}): check the name and the network"
        ) from None


def push_checkpoint(
    model: TwoStageDetector,
    metadata: DetectorMetadata,
    repository: str,
    *,
    filename: str,
    results: Mapping[str, Any] | str | Path | None,
    token: str | None,
    private: bool,
) -> str:
    """Upload checkpoint, model card and results to "owner/name", made if absent; returns the address of the commit.

    Raises CheckpointError in one line where the client is absent or the hub refuses.
    """
    record = _read_results(results) if isinstance(results, (str, Path)) else results
    card = model_card(repository.removeprefix("hf://"), model.config, metadata, record)
    try:
        from huggingface_hub import HfApi
    except ImportError:
        raise CheckpointError(_NO_CLIENT) from None
    repository = repository.removeprefix("hf://")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_detector(folder / filename, model, metadata)
        (folder / "README.md").write_text(card, encoding="utf-8")
        if record is not None:
            (folder / "results.json").write_text(json.dumps(record, indent=2), encoding="utf-8")
        hub = HfApi(token=token)
        try:
            hub.create_repo(repository, private=private, exist_ok=True)
            return str(hub.upload_folder(repo_id=repository, folder_path=folder, commit_message="Upload detector"))
        except Exception as error:  # As above: no common base.
            raise CheckpointError(
                f"cannot push to hf://{repository} ({_reason(error)}): check the name, the token and the network"
            ) from None


def model_card(
    repository: str, config: DetectorConfig, metadata: DetectorMetadata, results: Mapping[str, Any] | None
) -> str:
    """The README.md of a hub repository: what the detector is, how to use it, what it reached and how measured.

    `results` is what `ovbridge evaluate` or `ovbridge demo` wrote; without it the card says that nothing was measured.
    """
    measured = _measured(metadata.stage, results)
    head = [
        "---",
        "library_name: ovbridge",
        "pipeline_tag: zero-shot-object-detection",
        "tags:",
        "- object-detection",
        "- open-vocabulary",
        *_model_index(repository, measured),
        "---",
    ]
    names = metadata.names
    shown = ", ".join(names[:_NAMES_IN_CARD]) + (f", and {len(names) - _NAMES_IN_CARD} more" * (len(names) > 100))
    roles = [record.get("role") for record in metadata.vocabulary]
    example = json.dumps(list(names[:2]))
    body = [
        f"# {repository.split('/')[-1]}",
        "",
        "An open-vocabulary object detector: it finds things by name, including names it was given no boxes for.",
        "",
        "```python",
        "from ovbridge import Detector",
        f'detector = Detector.load("hf://{repository}")',
        f'found = detector.detect("photo.jpg", {example})',
        "```",
        "",
        "## What it is",
        "",
        "| | |",
        "|---|---|",
        f"| architecture | {config.name} |",
        f"| stage of training | {metadata.stage} |",
        f"| recipe | {metadata.recipe or 'not recorded'} |",
        f"| text encoder | {metadata.text_encoder}, {', '.join(repr(t) for t in metadata.templates)} |",
        f"| classes with boxes in training | {roles.count('base')} |",
        f"| novel classes | {roles.count('novel')} |",
        f"| masks | {'yes' if config.mask else 'no'} |",
        "",
        "## What it reached",
        "",
        *_results_table(measured),
        "",
        "## Stored vocabulary",
        "",
        shown,
        "",
    ]
    return "\n".join([*head, "", *body])


def _measured(stage: str, results: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """The results of this checkpoint's stage: a demo's file holds those of every stage."""
    if results is None or "stages" not in results:
        return results
    found = results["stages"].get(stage)
    return found if isinstance(found, Mapping) else None


def _metrics(measured: Mapping[str, Any]) -> list[tuple[str, float]]:
    """("AP50 novel", 41.2), ... in percent, those that were measured."""
    return [
        (f"{title} {group}", float(value))
        for key, title in (("ap50", "AP50"), ("ap", "AP"))
        for group, value in (measured.get(key) or {}).items()
        if value is not None
    ]


def _results_table(measured: Mapping[str, Any] | None) -> list[str]:
    if measured is None or not _metrics(measured):
        return ["No results were given with this checkpoint."]
    how = f"Protocol {measured.get('protocol', 'not recorded')} on {measured.get('dataset', 'a data set not recorded')}"
    images = f", {measured['images']} images" if "images" in measured else ""
    rows = [f"| {title} | {value:.1f} |" for title, value in _metrics(measured)]
    return [f"{how}{images}; in percent.", "", "| metric | value |", "|---|---|", *rows]


def _model_index(repository: str, measured: Mapping[str, Any] | None) -> list[str]:
    if measured is None or not _metrics(measured):
        return []
    # JSON is YAML, and quotes every name safely.
    dataset = str(measured.get("dataset", "unknown"))
    result = {
        "task": {"type": "object-detection"},
        "dataset": {"name": dataset, "type": dataset},
        "metrics": [
            {"type": title.lower().replace(" ", "_"), "name": title, "value": round(value, 2)}
            for title, value in _metrics(measured)
        ],
    }
    return ["model-index: " + json.dumps([{"name": repository.split("/")[-1], "results": [result]}])]


def _read_results(path: str | Path) -> Mapping[str, Any]:
    try:
        record = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"results {path} cannot be read ({_reason(error)}): give a results.json") from None
    if not isinstance(record, dict):
        raise CheckpointError(f"results {path} is no JSON object: give a results.json of 'ovbridge evaluate'")
    return record


def _reason(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
