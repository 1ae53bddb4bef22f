"""The exceptions that a user sees.

Each message is one line that names the thing at fault and the remedy. The command line prints it
and leaves with exit code 2; nothing else is allowed to end a run for a user's mistake.
"""


class OVBridgeError(Exception):
    """Base of every error that a user can cause and can mend."""


class VocabularyError(OVBridgeError):
    """Class names, their order, or their text embeddings do not fit together."""


class DataError(OVBridgeError):
    """An image, an annotation file or an image folder cannot be used as it is."""


class StoreError(OVBridgeError):
    """A label store is missing, damaged, or was made by another teacher."""


class CheckpointError(OVBridgeError):
    """A weights file is missing, foreign, truncated, or belongs to another run."""


class ConfigError(OVBridgeError):
    """A recipe, a stage, an override or an output folder does not exist or does not fit."""


class TeacherError(OVBridgeError):
    """A teacher (CLIP or a proposer) cannot be loaded or lacks what is asked of it."""
