# SPDX-License-Identifier: Apache-2.0
"""Adapters of PEFT that start from the gradient, LoRA-GA and LoRA-SB, and its OSF. Needs ``pip install 'lowtide[peft]'``.

The former are applied to a fresh LoRA adapter (``peft.get_peft_model(model, peft.LoraConfig(...))``) in place.
"""

from __future__ import annotations

from lowtide.integrations.peft._lora_ga import LoRAGAReport, lora_ga_
from lowtide.integrations.peft._lora_sb import FixedLinear, LatentLinear, lora_sb_, restore_lora_sb_
from lowtide.integrations.peft._osf import osf_constraint

__all__ = [
    "FixedLinear",
    "LatentLinear",
    "LoRAGAReport",
    "lora_ga_",
    "lora_sb_",
    "osf_constraint",
    "restore_lora_sb_",
]
