# SPDX-License-Identifier: Apache-2.0
"""The names, ``optim_args`` and ``optim_target_modules`` that users of transformers know, and what is refused."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import lowtide as lt

transformers = pytest.importorskip("transformers", reason="the Trainer (pip install lowtide[demo])")
pytest.importorskip("accelerate", reason="transformers.Trainer needs accelerate (pip install lowtide[demo])")

Make = Callable[..., Any]


def pair(model: Any, args: Any, **options: Any) -> Any:
    return lt.integrations.transformers.optimizer_cls_and_kwargs(model, args, **options)


def projected(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Names of the matrices that are projected, and the keys of their groups."""
    low = [g for g in kwargs["params"] if "rank" in g]
    return {
        "names": sorted(n for g in low for n in g["param_names"]),
        **{k: low[0][k] for k in ("rank", "update_proj_gap", "scale", "proj_type") if k in low[0]},
    }


@pytest.mark.parametrize(
    ("optim", "kind"),
    [
        ("adamw_torch", "AdamW"), ("adamw_torch_fused", "AdamW"), ("adamw_torch_8bit", "AdamW8bit"),
        ("adamw_torch_4bit", "AdamW4bit"), ("adamw_bnb_8bit", "AdamW8bit"), ("adamw_8bit", "AdamW8bit"),
        ("lion_8bit", "Lion8bit"), ("lion_32bit", "Lion"), ("adafactor", "Adafactor"), ("sgd", "SGD"),
        ("galore_adamw", "GaLoreAdamW"), ("galore_adamw_8bit", "GaLoreAdamW8bit"),
        ("galore_adafactor", "GaLoreAdafactor"), ("apollo_adamw", "APOLLO"),
    ],
)  # fmt: skip
def test_optim(make_model: Make, arguments: Make, optim: str, kind: str) -> None:
    cls, kwargs = pair(make_model(), arguments(optim=optim))
    assert cls is getattr(lt.optim, kind)
    opt = cls(**kwargs)
    assert [g["lr"] for g in opt.param_groups] == [1e-2] * len(opt.param_groups)


def test_every_name_of_transformers_is_known_or_refused_with_a_remedy(
    make_model: Make, arguments: Make
) -> None:
    model = make_model()
    for name in transformers.training_args.OptimizerNames:
        try:
            pair(model, arguments(optim=name.value))
        except lt.LowtideValueError as error:
            assert name.value in str(error)  # noqa: PT017
            assert "use" in str(error) or "did you mean" in str(error)  # noqa: PT017


@pytest.mark.parametrize("method", sorted(set(lt.train.METHODS) - {"mezo", "qzo"}))
def test_methods_of_the_command_line(make_model: Make, arguments: Make, method: str) -> None:
    cls, kwargs = pair(
        make_model(), arguments(), method=method, **({"rank": 4} if lt.train.METHODS[method].low_rank else {})
    )
    assert cls.__name__ == lt.train.METHODS[method].optimizer
    assert any("rank" in g for g in kwargs["params"]) == lt.train.METHODS[method].low_rank


@pytest.mark.parametrize("method", ["q-galore", "Q_GaLore", "QGaLoreAdamW", lt.optim.QGaLoreAdamW])
def test_spellings(make_model: Make, arguments: Make, method: Any) -> None:
    assert pair(make_model(), arguments(), method=method)[0] is lt.optim.QGaLoreAdamW


def test_transformers_defaults_of_low_rank_groups(make_model: Make, arguments: Make) -> None:
    found = projected(pair(make_model(), arguments(optim="galore_adamw"))[1])
    assert (found["rank"], found["update_proj_gap"], found["scale"], found["proj_type"]) == (
        128,
        200,
        0.25,
        "std",
    )


def test_optim_args(make_model: Make, arguments: Make) -> None:
    text = "rank=64, update_proj_gap=100, scale=0.10, proj_type=reverse_std, svd=exact"
    cls, kwargs = pair(make_model(), arguments(optim="galore_adamw", optim_args=text))
    found = projected(kwargs)
    assert (found["rank"], found["update_proj_gap"], found["scale"]) == (64, 100, 0.1)
    assert (found["proj_type"], kwargs["svd"]) == ("reverse_std", "exact")
    cls(**kwargs)
    _, kwargs = pair(
        make_model(), arguments(optim="apollo_adamw", optim_args="rank=1,scale_type=tensor,scale=128")
    )
    assert (projected(kwargs)["rank"], kwargs["scale_type"]) == (1, "tensor")
    _, kwargs = pair(make_model(), arguments(optim="sgd", optim_args="momentum=0.8,nesterov=true"))
    assert (kwargs["momentum"], kwargs["nesterov"]) == (0.8, True)
    _, kwargs = pair(
        make_model(),
        arguments(optim="adamw_torch_4bit", optim_args="bf16_stochastic_round=False,block_size=128"),
    )
    assert kwargs["stochastic"] is False
    assert "block_size" not in kwargs


def theirs(model: nn.Module, targets: Any) -> list[str]:
    """What transformers' own set-up of GaLore projects."""
    from transformers.trainer_optimizer import _setup_low_rank_optimizer

    class Args:
        optim_target_modules = targets
        parallel_mode = None

    table: Any = {"galore_adamw": torch.optim.SGD}
    _, kwargs = _setup_low_rank_optimizer(Args(), model, "galore_adamw", table, {"rank": 4}, {})  # type: ignore[arg-type]
    wanted = {id(p) for p in kwargs["params"][1]["params"]}
    return sorted(n for n, p in model.named_parameters() if id(p) in wanted)


@pytest.mark.parametrize(
    "targets",
    ["all-linear", "all_linear", ["attn", "mlp"], ["q_proj"], r".*\.(q|k)_proj", [r".*\.down_proj", "lm_head"],
     ["model.layers.0.mlp.up_proj"]],
)  # fmt: skip
@pytest.mark.parametrize("tied", [True, False])
def test_targets_are_those_of_transformers(
    make_model: Make, arguments: Make, targets: Any, tied: bool
) -> None:
    model = make_model(tie_word_embeddings=tied)
    _, kwargs = pair(model, arguments(optim="galore_adamw", optim_target_modules=targets))
    assert projected(kwargs)["names"] == theirs(model, targets)


def test_without_targets_all_linear_layers_but_the_head(make_model: Make, arguments: Make) -> None:
    model = make_model(tie_word_embeddings=False)
    names = projected(pair(model, arguments(), method="fira")[1])["names"]
    assert len(names) == 7
    assert "lm_head.weight" not in names


@pytest.mark.parametrize(
    ("settings", "options", "message"),
    [
        ({"optim": "paged_adamw_8bit"}, {}, "use adamw_8bit"),
        ({"optim": "rmsprop"}, {}, "no counterpart"),
        ({}, {"method": "galor"}, "did you mean 'galore'"),
        ({}, {"method": "mezo"}, "ZOTrainer"),
        ({}, {"method": 3}, "method must be a name"),
        ({"optim_args": "rnak=3"}, {"method": "fira"}, "did you mean 'rank'"),
        ({"optim_args": "rank"}, {"method": "fira"}, "key=value"),
        ({"optim_args": "rank=3,rank=4"}, {"method": "fira"}, "twice"),
        ({"optim_args": "rank=3"}, {"method": "fira", "rank": 4}, "leave one of them out"),
        ({"optim_args": "rank=3"}, {"method": "adamw8bit"}, "low-rank methods"),
        ({"optim_args": "rank=x"}, {"method": "fira"}, "rank must be"),
        ({"optim_args": "lr=3"}, {"method": "fira"}, "TrainingArguments.learning_rate"),
        ({"optim_args": "block_size=64", "optim": "adamw_torch_8bit"}, {}, "block_size of adamw_torch_8bit is 256"),
        ({"optim_target_modules": ["nothing"]}, {"method": "fira"}, "its layers end in"),
        ({"optim_target_modules": ["attn"]}, {"method": "adamw8bit"}, "leave them out"),
        ({}, {"method": "fira", "clip": "previous"}, "layerwise=True"),
    ],
)  # fmt: skip
def test_errors(make_model: Make, arguments: Make, settings: Any, options: Any, message: str) -> None:
    with pytest.raises(lt.LowtideError, match=message):
        pair(make_model(), arguments(**settings), **options)


def test_fp16_is_refused(make_model: Make, arguments: Make) -> None:
    args = arguments()
    args.fp16 = True
    with pytest.raises(lt.LowtideValueError, match="bf16=True"):
        pair(make_model(), args)


@pytest.mark.parametrize("missing", ["transformers", "accelerate"])
def test_without_the_packages_the_error_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    package = "lowtide.integrations.transformers"
    for name in [n for n in sys.modules if n == package or n.startswith(package + ".")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)  # type: ignore[arg-type]
    with pytest.raises(lt.LowtideImportError, match=r"pip install 'lowtide\[demo\]'"):
        importlib.import_module(package)
