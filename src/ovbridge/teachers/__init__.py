"""Frozen models that label images: text-driven proposers and CLIP. The detector meets their labels alone."""
