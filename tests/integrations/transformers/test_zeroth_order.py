# SPDX-License-Identifier: Apache-2.0
"""ZOTrainer: the steps of SPSA within the Trainer's loop."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import lowtide as lt

transformers = pytest.importorskip("transformers", reason="the Trainer (pip install lowtide[demo])")
pytest.importorskip("accelerate", reason="transformers.Trainer needs accelerate (pip install lowtide[demo])")

pytestmark = pytest.mark.filterwarnings("ignore:max_grad_norm")
Make = Callable[..., Any]
OPTIONS = {"eps": 1e-3, "directions": 2}


def trainer(model: Any, args: Any, tokens: Any, **options: Any) -> Any:
    settings = {"zo_method": "spsa", "zo_options": OPTIONS, **options}
    return lt.integrations.transformers.ZOTrainer(model, args, train_dataset=tokens, **settings)


def same(a: Any, b: Any) -> bool:
    return all(
        torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    )


def test_equals_a_loop_written_by_hand(make_model: Make, arguments: Make, tokens: Any) -> None:
    model, other = make_model(), make_model().eval()
    args = arguments("a", learning_rate=1e-3)
    run = trainer(model, args, tokens)
    run.train()

    again = trainer(make_model(), arguments("b", learning_rate=1e-3), tokens)
    transformers.set_seed(3)
    batches = list(again.get_train_dataloader())[:8]
    opt = lt.spsa.SPSA(
        other.named_parameters(), 1e-3, module=other, weight_decay=0.1, seed=3, **OPTIONS
    )  # fmt: skip
    schedule = transformers.get_scheduler("cosine", opt, num_warmup_steps=0, num_training_steps=4)
    losses = []
    for step in range(4):
        pair = batches[2 * step : 2 * step + 2]
        count = sum(int((b["labels"][:, 1:] != -100).sum()) for b in pair)
        losses.append(opt.step(lambda p=pair, n=count: sum(other(**b, num_items_in_batch=n).loss for b in p)))
        schedule.step()
    assert same(model, other)
    logged = [log["loss"] for log in run.state.log_history if "loss" in log]
    assert logged == pytest.approx(losses, rel=1e-5)
    assert not any("grad_norm" in log for log in run.state.log_history)
    assert all(p.grad is None for p in model.parameters())


def test_it_learns(make_model: Make, arguments: Make, tokens: Any) -> None:
    """Two tokens in turn."""
    tokens.ids = torch.full((24, 12), 7)
    tokens.ids[:, ::2] = 9
    settings = {"weight_decay": 0.0, "gradient_accumulation_steps": 1, "lr_scheduler_type": "linear"}
    args = arguments("a", max_steps=60, learning_rate=3e-3, logging_steps=60, **settings)
    options = {"eps": 1e-3, "directions": 4}
    run = trainer(
        make_model(tie_word_embeddings=False), args, tokens, zo_options=options, eval_dataset=tokens
    )
    before = run.evaluate()["eval_loss"]
    run.train()
    assert run.evaluate()["eval_loss"] < before - 1


@pytest.mark.parametrize("kind", ["spsa", "qzo"])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(
    make_model: Make, arguments: Make, tokens: Any, stop: Any, tmp_path: Path, kind: str
) -> None:
    def model() -> Any:
        made = make_model()
        return lt.integrations.transformers.prepare_model(made, "int4", group=32) if kind == "qzo" else made

    options: dict[str, Any] = {"zo_method": kind, "zo_options": {"eps": 1e-2}} if kind == "qzo" else {}
    whole = model()
    start = {name: w.clone() for name, w in whole.state_dict().items()}
    trainer(whole, arguments("a", learning_rate=3e-3), tokens, log=tmp_path / "a.ltlog", **options).train()
    assert any(not torch.equal(w, start[name]) for name, w in whole.state_dict().items())

    trainer(
        model(),
        arguments("b", learning_rate=3e-3),
        tokens,
        log=tmp_path / "b.ltlog",
        callbacks=[stop()],
        **options,
    ).train()
    state = torch.load(tmp_path / "b" / "checkpoint-2" / "optimizer.pt", weights_only=True)
    assert state["spsa"]["step"] == 2
    second = model()
    trainer(second, arguments("b", learning_rate=3e-3), tokens, log=tmp_path / "b.ltlog", **options).train(
        resume_from_checkpoint=str(tmp_path / "b" / "checkpoint-2")
    )
    assert same(whole, second)


@pytest.mark.parametrize("ahead", [False, True])
def test_the_log_replays_to_the_trained_weights(
    make_model: Make, arguments: Make, tokens: Any, stop: Any, tmp_path: Path, ahead: bool
) -> None:
    """Also of a resumed run, whose log may have been ahead of the checkpoint."""
    path = tmp_path / "run.ltlog"

    class Later(transformers.TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            control.should_save = state.global_step == 2
            control.should_training_stop = state.global_step == 3

    first = [Later()] if ahead else [stop()]
    trainer(make_model(), arguments("a", learning_rate=1e-3), tokens, log=path, callbacks=first).train()
    assert lt.spsa.log.inspect(path).step == (3 if ahead else 2)
    model = make_model()
    trainer(model, arguments("a", learning_rate=1e-3), tokens, log=path).train(
        resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-2")
    )
    base = {name: p.detach().clone() for name, p in make_model().named_parameters()}
    replayed = {name: torch.zeros_like(p) for name, p in base.items()}
    assert lt.spsa.replay(replayed, path, base=base).step == 4
    assert all(torch.equal(p, replayed[name]) for name, p in model.named_parameters())


def test_logs_of_other_runs_are_left_alone(
    make_model: Make, arguments: Make, tokens: Any, stop: Any, tmp_path: Path
) -> None:
    path = tmp_path / "run.ltlog"
    trainer(make_model(), arguments("a", seed=4), tokens, log=path).train()
    with pytest.raises(lt.spsa.LogError, match="has steps up to 4"):
        trainer(make_model(), arguments("b", seed=4), tokens, log=path).train()
    mine = {"log": tmp_path / "mine.ltlog"}
    trainer(make_model(), arguments("c"), tokens, callbacks=[stop()], **mine).train()
    with pytest.raises(lt.spsa.LogError):
        trainer(make_model(), arguments("c"), tokens, log=path).train(
            resume_from_checkpoint=str(tmp_path / "c" / "checkpoint-2")
        )
    assert lt.spsa.log.inspect(path).step == 4


def test_the_callback_tells_what_it_costs(
    make_model: Make, arguments: Make, tokens: Any, tmp_path: Path
) -> None:
    callback = lt.integrations.transformers.RunCallback(tmp_path / "run", every=2)
    trainer(make_model(), arguments("a"), tokens, callbacks=[callback]).train()
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records] == [1, 2, 3, 4]
    assert records[0]["bytes"]["probe"] > 0
    assert not any("grad_norm" in r for r in records)


@pytest.mark.parametrize(
    ("settings", "options", "message"),
    [
        ({}, {"zo_method": "adam"}, "zo_method must be one of"),
        ({}, {"zo_method": lt.optim.AdamW}, "subclass of SPSA"),
        ({}, {"zo_options": {"lr": 1.0}}, "TrainingArguments.learning_rate"),
        ({}, {"zo_options": {"comm": 1}}, "several workers"),
        ({}, {"optimizers": (1, None)}, "makes its own"),
    ],
)
def test_errors(
    make_model: Make, arguments: Make, tokens: Any, settings: Any, options: Any, message: str
) -> None:
    with pytest.raises(lt.LowtideError, match=message):
        trainer(make_model(), arguments(**settings), tokens, **options)


def test_what_makes_no_sense_is_refused(make_model: Make, arguments: Make, tokens: Any) -> None:
    args = arguments()
    args.fp16 = True
    with pytest.raises(lt.LowtideValueError, match="bf16=True"):
        lt.integrations.transformers._zeroth_order._check_arguments(args)
    with pytest.warns(UserWarning, match="limits slopes"):
        trainer(make_model(), arguments(max_grad_norm=0.5), tokens)
