# SPDX-License-Identifier: Apache-2.0
"""Adapters of PEFT that start from the gradient: LoRA-GA and LoRA-SB. Needs ``pip install 'lowtide[peft]'``.

Both are applied to a fresh LoRA adapter (``peft.get_peft_model(model, peft.LoraConfig(...))``) in place.
"""

from __future__ import annotations

from lowtide.integrations.peft._lora_ga import LoRAGAReport, lora_ga_

__all__ = ["LoRAGAReport", "lora_ga_"]
