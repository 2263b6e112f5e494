# SPDX-License-Identifier: Apache-2.0
"""Which methods have a page, in which group, and of which year their paper is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Page:
    """One page of docs/methods.

    Attributes:
        file: its name without suffix. title: its heading. year: of the paper.
        names: what it describes: presets of lt.optim and lt.spsa by name, anything else by its path below lowtide.
        word: what the others do, in a word; presets of the engine say it themselves.
    """

    file: str
    title: str
    year: int
    names: tuple[str, ...]
    word: str = ""


GROUPS: tuple[tuple[str, tuple[Page, ...]], ...] = (
    (
        "Low rank",
        (
            Page("galore", "GaLore", 2024, ("GaLoreAdamW", "GaLoreAdamW8bit", "GaLoreAdafactor", "GaLore")),
            Page("q-galore", "Q-GaLore", 2024, ("QGaLoreAdamW",)),
            Page("fira", "Fira", 2024, ("FiraAdamW",)),
        ),
    ),
    (
        "Full rank",
        (Page("adamw", "AdamW in 32, 8 and 4 bits", 2019, ("AdamW", "AdamW8bit", "AdamW4bit")),),
    ),
    (
        "Zeroth order",
        (Page("mezo", "MeZO", 2023, ("MeZO",)),),
    ),
)
PAGES = tuple(page for _, pages in GROUPS for page in pages)
