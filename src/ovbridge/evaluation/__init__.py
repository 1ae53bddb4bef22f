"""How good detections are: AP under named protocols, proposal recall, precision-recall curves."""

from ovbridge.evaluation.protocols import Protocol, evaluate

__all__ = ["Protocol", "evaluate"]
