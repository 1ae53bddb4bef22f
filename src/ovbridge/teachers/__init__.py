"""Frozen models that label images: text-driven proposers and CLIP. They meet the detector only through the label store."""
