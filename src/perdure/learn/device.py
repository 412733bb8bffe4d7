"""Where an update trains, and in which precision it computes its large products there."""

from __future__ import annotations

from typing import Literal

import torch

from perdure.config import Device
from perdure.errors import SettingError

Precision = Literal["auto", "float32", "bfloat16"]


def training_device(wanted: Device) -> torch.device:
    """The device called `wanted`; `auto` is a GPU where there is one, else the processor.

    Raises:
        SettingError: a GPU is wanted and there is none.
    """
    found = torch.cuda.is_available()
    if wanted == "cuda" and not found:
        raise SettingError(
            "setting device cannot be 'cuda': PyTorch finds no GPU here. Set it to auto or cpu, or install "
            "a driver and a build of PyTorch for CUDA"
        )
    return torch.device("cuda" if found and wanted != "cpu" else "cpu")


def product_precision(wanted: Precision, device: torch.device) -> torch.dtype:
    """The precision called `wanted` on `device`; `auto` is bfloat16 where the device computes in it, else float32.

    Raises:
        SettingError: bfloat16 is wanted of a device that has no instructions for it, and would be slower.
    """
    if wanted == "float32":
        return torch.float32
    if computes_bfloat16(device):
        return torch.bfloat16
    if wanted == "bfloat16":
        raise SettingError(
            f"setting lora.precision cannot be 'bfloat16': this {device.type} has no instructions for it. "
            "Set it to auto or float32"
        )
    return torch.float32


def computes_bfloat16(device: torch.device) -> bool:
    """Whether `device` has matrix products in bfloat16 in hardware."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu":
        return False
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
