"""What an audit found, and what follows from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Channel = Literal[
    "boxes",
    "class names",
    "synonyms",
    "annotation text",
    "tags",
    "captions",
    "image folders",
    "pseudo boxes",
    "queries",
    "proposer",
    "backbone",
    "vocabulary",
    "text bank",
]
"""The way that a name took: see `leaks`."""

Severity = Literal["leak", "known vocabulary", "undeclared"]
"""leak: novel objects were boxed under their name, by a person or in a teacher's training. known vocabulary: the names
were known (image labels, captions, classifier columns), which is the protocol of the paper and of Detic, to be said
beside the numbers. undeclared: nobody says what a teacher was trained on."""

Verdict = Literal["clean", "known vocabulary", "leak"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One way in which novel names reached training."""

    channel: Channel
    severity: Severity
    names: tuple[str, ...]
    """The novel classes, at most ten."""
    count: int
    """How many records (boxes, images, rows, words)."""
    where: str
    """File, folder or store."""
    example: str
    """The first record, by its id, with the words that named the class."""

    def sentence(self) -> str:
        """One line for people."""
        shown = ", ".join(self.names[:5]) + (", …" if len(self.names) > 5 else "")
        named = f" of {shown}" if shown else ""
        return f"{self.channel}: {self.count}{named} in {self.where} (first: {self.example})"


@dataclass(frozen=True, kw_only=True)
class LeakReport:
    """The outcome of an audit."""

    novel_classes: int
    looked_at: tuple[str, ...]
    """What was read, one line each."""
    findings: tuple[Finding, ...] = ()
    strict: bool = False
    """Whether the target names had to be unknown."""
    notes: tuple[str, ...] = field(default=())

    @property
    def verdict(self) -> Verdict:
        """leak, known vocabulary or clean."""
        if any(is_fatal(f, strict=self.strict) for f in self.findings):
            return "leak"
        return "known vocabulary" if self.findings else "clean"

    def to_json(self) -> dict[str, Any]:
        """For results.json and --json."""
        return {
            "verdict": self.verdict,
            "strict": self.strict,
            "novel_classes": self.novel_classes,
            "leaks": [f.sentence() for f in self.findings if is_fatal(f, strict=self.strict)],
            "stated": [f.sentence() for f in self.findings if not is_fatal(f, strict=self.strict)],
            "findings": [asdict(f) for f in self.findings],
            "looked_at": list(self.looked_at),
            "notes": list(self.notes),
        }


def is_fatal(finding: Finding, *, strict: bool) -> bool:
    """Whether a finding makes the numbers invalid: always for leaks, in the strict protocol for everything in training.

    What a backbone was taught to name before is stated only: the paper's strict runs start from ImageNet weights too.
    """
    return finding.severity == "leak" or (strict and finding.channel != "backbone")


def merged(reports: Sequence[LeakReport]) -> LeakReport:
    """One report of the audits of a chain of runs; equal findings count once."""
    findings = list(dict.fromkeys(f for r in reports for f in r.findings))
    return LeakReport(
        novel_classes=max((r.novel_classes for r in reports), default=0),
        looked_at=tuple(dict.fromkeys(line for r in reports for line in r.looked_at)),
        findings=tuple(findings),
        strict=any(r.strict for r in reports),
        notes=tuple(dict.fromkeys(n for r in reports for n in r.notes)),
    )
