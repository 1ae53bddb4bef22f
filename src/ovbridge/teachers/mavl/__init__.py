"""MAVL (MDef-DETR, arXiv 2111.11430): a text-driven proposer with multi-scale deformable attention and late fusion."""
