"""Pseudo-labels of the teachers: atomic, resumable, queryable."""

import os

# Lance reads it when it is first imported; by default it warns of every data set that it is asked to create.
os.environ.setdefault("LANCE_LOG", "error")

from ovbridge.label_store.manifest import ImageSet, Manifest
from ovbridge.label_store.schema import LabelledImage, NamedBoxes, Table
from ovbridge.label_store.store import LabelStore, save_text_bank

__all__ = ["ImageSet", "LabelStore", "LabelledImage", "Manifest", "NamedBoxes", "Table", "save_text_bank"]
