"""MAVL (MDef-DETR, arXiv 2111.11430): a text-driven proposer with multi-scale deformable attention and late fusion."""

from ovbridge.teachers.mavl.proposer import MavlProposer, load_mavl

__all__ = ["MavlProposer", "load_mavl"]
