"""Which device to compute on, and in which precision it pays."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch

Precision = Literal["auto", "fp32", "bf16", "fp16"]
DetectionPrecision = Literal["fp32", "mixed", "bf16", "auto"]
"""What a detector computes in. mixed: maps, proposals and the best regions in fp32, which keeps the best detections of
fp32; the search among the regions in bf16. auto: bf16 where the hardware has it, else fp32."""


def default_device() -> torch.device:
    """The first CUDA device if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def bf16_pays(device: torch.device) -> bool:
    """True where bf16 is computed by the hardware.

    On a CPU that means AVX512-BF16 or AMX: without them oneDNN declines and PyTorch falls back to a
    reference convolution that measured 15 times slower than fp32 (AMD EPYC with AVX2, torch 2.15).
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return False


def training_precision(device: torch.device, precision: Precision) -> Precision:
    """What "auto" means in training: bf16 where it pays, fp16 with a loss scale on older GPUs, else fp32."""
    if precision != "auto":
        return precision
    if bf16_pays(device):
        return "bf16"
    return "fp16" if device.type == "cuda" else "fp32"


def labelling_precision(device: torch.device, precision: Precision) -> Precision:
    """What "auto" means where nothing learns: bf16 where it pays, else fp32."""
    if precision != "auto":
        return precision
    return "bf16" if bf16_pays(device) else "fp32"


def autocast(device: torch.device, precision: Precision = "auto") -> AbstractContextManager[object]:
    """An autocast context for `precision`; "auto" is bf16 where it pays, else fp32."""
    if precision == "fp32" or (precision == "auto" and not bf16_pays(device)):
        return nullcontext()
    dtype = torch.float16 if precision == "fp16" else torch.bfloat16
    return torch.autocast(device.type, dtype)
