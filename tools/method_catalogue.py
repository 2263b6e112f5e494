# SPDX-License-Identifier: Apache-2.0
"""Which methods have a page, in which group, and of which year their paper is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Page:
    """One page of docs/methods.

    Attributes:
        file: its name without suffix. title: its heading. year: of the paper, where it first appeared.
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
            Page("apollo", "APOLLO", 2024, ("APOLLO", "APOLLOMini")),
            Page("frugal", "FRUGAL", 2024, ("FRUGAL",)),
            Page("ldadam", "LDAdam", 2024, ("LDAdam",)),
            Page("dct-adamw", "DCT-AdamW", 2025, ("DCTAdamW",)),
            Page("subtrack", "SubTrack++", 2025, ("SubTrack",)),
            Page("flora", "Flora", 2024, ("Flora",)),
            Page("grass", "GRASS", 2024, ("GRASSAdamW",)),
            Page("golore", "GoLore", 2024, ("GoLoreAdamW",)),
            Page("lotus", "Lotus", 2026, ("LotusAdamW",)),
            Page("gradnormlorp", "GradNormLoRP", 2024, ("GradNormLoRP",)),
        ),
    ),
    (
        "Full rank",
        (
            Page("adamw", "AdamW in 32, 8 and 4 bits", 2019, ("AdamW", "AdamW8bit", "AdamW4bit")),
            Page("lion", "Lion", 2023, ("Lion", "Lion8bit")),
            Page("sgd", "SGD with momentum", 2019, ("SGD", "SGD8bit")),
            Page("signsgd", "signSGD and Signum", 2018, ("SignSGD", "Signum")),
            Page("adabelief", "AdaBelief", 2020, ("AdaBelief", "AdaBelief8bit")),
            Page("diffgrad", "diffGrad", 2019, ("DiffGrad", "DiffGrad8bit")),
            Page("adamp", "AdamP and SGDP", 2020, ("AdamP", "SGDP")),
            Page("adafactor", "Adafactor", 2018, ("Adafactor",)),
            Page("adam-mini", "Adam-mini", 2024, ("AdamMini", "AdamMini8bit")),
        ),
    ),
    (
        "By curvature",
        (
            Page("adahessian", "AdaHessian", 2020, ("AdaHessian",)),
            Page("sophia", "Sophia", 2023, ("SophiaG", "SophiaH")),
            Page("mfac", "M-FAC", 2021, ("MFAC",)),
            Page(
                "sam",
                "SAM and ASAM",
                2020,
                ("SAM",),
                "the gradient where the loss is worst nearby, for any base optimizer",
            ),
            Page(
                "gradnormsmooth",
                "Gradient-normalized smoothness",
                2025,
                ("GradNormSmooth",),
                "Newton's method that finds its damping by itself",
            ),
            Page("harpg", "HARPG", 2023, ("HARPG", "NHARPG")),
        ),
    ),
    (
        "Zeroth order",
        (
            Page("mezo", "MeZO", 2023, ("MeZO",)),
            Page("fzoo", "FZOO", 2026, ("FZOO",)),
            Page("sparse-mezo", "Sparse-MeZO", 2024, ("SparseMeZO",)),
            Page("lozo", "LOZO", 2024, ("LOZO",)),
            Page("hizoo", "HiZOO", 2024, ("HiZOO",)),
            Page("conmezo", "ConMeZO", 2025, ("ConMeZO",)),
            Page("qzo", "QZO", 2025, ("QZO",)),
            Page("quzo", "QuZO", 2025, ("QuZO",)),
            Page("fedkseed", "FedKSeed", 2023, ("FedKSeed",)),
        ),
    ),
)
PAGES = tuple(page for _, pages in GROUPS for page in pages)
