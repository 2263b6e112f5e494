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
    (
        "Curvature",
        (
            Page(
                "trace",
                "Hutchinson, Hutch++, XTrace",
                1989,
                ("curvature.trace", "curvature.diagonal"),
                "trace and diagonal from products, with intervals",
            ),
            Page(
                "lanczos",
                "Lanczos: eigenvalues and spectra",
                2000,
                ("curvature.eigsh", "curvature.slq"),
                "extreme eigenpairs with residuals; spectral density",
            ),
            Page(
                "lla",
                "Loss landscape criteria",
                2024,
                ("curvature.Spectrum.criteria", "curvature.landscape"),
                "how far a minimum is from convex; planes of the loss",
            ),
            Page(
                "hgp",
                "HGP and Hessian alignment",
                2023,
                ("curvature.regularizers.HGP", "curvature.regularizers.HutchinsonAlign"),
                "one Hessian of the head for all domains",
            ),
            Page(
                "pruning",
                "OBD, OBS, GBLM",
                1990,
                ("curvature.pruning_statistics", "curvature.prune_mask"),
                "which weights can go",
            ),
        ),
    ),
    (
        "Constraints and continual learning",
        (
            Page(
                "perpendicular",
                "Perpendicular gradient and StableMax",
                2025,
                ("optim.Perpendicular", "optim.StableMaxCrossEntropy"),
                "no step along the weight; a softmax that grows linearly",
            ),
            Page("gpm", "GPM and SGP", 2021, ("continual.GPM", "continual.SGP"), "no step along past inputs"),
            Page(
                "nscl",
                "Adam-NSCL and NSGP",
                2021,
                ("continual.AdamNSCL", "continual.NSGP"),
                "steps in the null space of past inputs",
            ),
            Page(
                "trgp",
                "TRGP and CUBER",
                2022,
                ("continual.TRGP", "continual.CUBER"),
                "old knowledge rescaled for new tasks; backward transfer",
            ),
            Page(
                "osf",
                "OSF",
                2025,
                ("continual.OSF", "continual.factorize_"),
                "no step along a weight's leading singular directions",
            ),
        ),
    ),
    (
        "Adapters and ranks",
        (
            Page(
                "lora-ga",
                "LoRA-GA",
                2024,
                ("integrations.peft.lora_ga_",),
                "adapters that start along the gradient",
            ),
            Page(
                "lora-sb",
                "LoRA-SB",
                2024,
                ("integrations.peft.lora_sb_",),
                "r × r numbers between fixed factors",
            ),
            Page(
                "welore",
                "WeLore",
                2024,
                ("lowrank.welore_plan", "lowrank.welore_compress_"),
                "a rank for each layer",
            ),
        ),
    ),
    (
        "Low bit",
        (
            Page(
                "number-formats",
                "Number formats: integer groups, NF4, dynamic maps",
                2022,
                ("quant.quantize", "quant.quantize_model_"),
                "codes and scales, rounded to nearest or stochastically",
            ),
            Page(
                "outliers",
                "Outliers and GWQ",
                2024,
                ("quant.outliers.quantize", "quant.gwq.quantize", "quant.gwq.quantize_model_"),
                "a few weights aside in 16 bits",
            ),
            Page(
                "codebooks",
                "Codebooks: k-means, VQ4DiT, JLCM",
                2024,
                ("quant.codebook.fit", "quant.codebook.CandidateMapping", "quant.codebook.JointMapping"),
                "indices into learned codewords",
            ),
            Page(
                "qat",
                "StatsQ, LSQ, and freezing",
                2019,
                (
                    "quant.qat.StatsQ",
                    "quant.qat.LSQ",
                    "quant.qat.ConfidenceAnnealing",
                    "quant.qat.FreezeOscillating",
                    "quant.qat.GradientConflictFreeze",
                ),
                "training through a quantizer",
            ),
            Page(
                "binary", "ReSTE and BiPer", 2023, ("quant.qat.ReSTE", "quant.qat.BiPer"), "one bit a weight"
            ),
        ),
    ),
)
PAGES = tuple(page for _, pages in GROUPS for page in pages)
