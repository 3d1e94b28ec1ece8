"""In which dtype a managed model computes and is kept, and why: by the user's choice, else by the host's.

Weights keep the dtype of their file; only a narrower one that the user chose replaces it. So nothing is ever widened in
memory, and on a CPU the file stays mapped. On a CPU fp16 is never computed: it is a hundred times slower there.
"""

from __future__ import annotations

from dataclasses import dataclass

import comfy.model_management as mm
import torch

AUTO = "auto"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
FP8 = "fp8_e4m3fn"  # of the matrices in memory, as the host's own loaders call it; never computed in
CHOICES = (AUTO, *DTYPES, FP8)
FAST = {torch.float16: "should_use_fp16", torch.bfloat16: "should_use_bf16"}  # what the host is asked


@dataclass(frozen=True)
class Precision:
    """compute: of activations;  kept: of the weights in memory, fp8 of its matrices only;  why: for the user, short."""

    compute: torch.dtype
    kept: torch.dtype
    why: str

    def __str__(self) -> str:
        return f"weights kept in {short(self.kept)}, computed in {short(self.compute)}: {self.why}"


def short(dtype: torch.dtype) -> str:
    """`fp32` and the like, as the widget calls it."""
    return next((name for name, known in DTYPES.items() if known == dtype), FP8)


def precision(choice: str, stored: torch.dtype, device: torch.device) -> Precision:
    """The dtypes for weights `stored` in a file, on `device`. choice: of CHOICES; ValueError for another."""
    if choice == AUTO:
        compute, why = host_choice(stored, device)
        return Precision(compute, stored, why)
    if choice == FP8:
        return Precision(host_choice(stored, device)[0], torch.float8_e4m3fn, "half the memory, and less exact")
    if choice not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(CHOICES)}, got {choice!r}; choose one of them")
    if mm.is_device_cpu(device):
        return _on_cpu(DTYPES[choice], stored)
    compute = DTYPES[choice]
    return Precision(compute, compute if compute.itemsize <= stored.itemsize else stored, "as chosen")


def _on_cpu(compute: torch.dtype, stored: torch.dtype) -> Precision:
    if compute == torch.float16:
        why = "fp16 was chosen, which a CPU computes a hundred times slower"
        return Precision(torch.float32, stored, why)
    return Precision(compute, stored, "as chosen")


def host_choice(stored: torch.dtype, device: torch.device) -> tuple[torch.dtype, str]:
    """The stored dtype where the host calls the device fast in it, then the other half precision, else fp32."""
    if mm.is_device_cpu(device):
        return torch.float32, "a CPU is at its best in it"
    if stored not in FAST:
        return torch.float32, "the weights' own"
    if getattr(mm, FAST[stored])(device):
        return stored, f"the weights' own, and fast on {device}"
    other = next(dtype for dtype in FAST if dtype != stored)
    if getattr(mm, FAST[other])(device):
        return other, f"{device} is fast in it, and not in {short(stored)}"
    return torch.float32, f"{device} is fast in no half precision"
