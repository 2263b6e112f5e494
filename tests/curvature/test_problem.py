# SPDX-License-Identifier: Apache-2.0
"""The loss over data: parameters, batches, weights, losses, and that evaluating it leaves no trace."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from curvature_operators import BatchNormNet, Tied, classes, mlp, seeded, unchanged  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

import lowtide as lt  # noqa: E402
from lowtide.curvature import Problem  # noqa: E402


def names(model, params):
    return Problem(
        model, params, (torch.ones(1, 4).double(), torch.zeros(1).long()), "cross_entropy"
    ).layout.names


def test_parameters_are_chosen_in_five_ways():
    model = mlp()
    assert names(model, None) == ("0.weight", "0.bias", "2.weight", "2.bias")
    assert names(model, [model[2].bias, model[0].weight]) == ("2.bias", "0.weight")
    assert names(model, ["2.weight"]) == names(model, "2.weight") == ("2.weight",)
    assert names(model, lambda name, p: p.dim() == 2) == ("0.weight", "2.weight")
    assert names(model, model.named_parameters()) == names(model, None)
    model[0].weight.requires_grad_(False)
    assert names(model, None) == ("0.bias", "2.weight", "2.bias")
    assert names(model, ["0.weight"]) == ("0.weight",)


def test_tied_parameters_count_once_under_their_first_name():
    model = Tied()
    problem = Problem(model, None, torch.zeros(1, 3).long(), "causal_lm")
    assert problem.layout.names == ("embed.weight", "mix.weight", "mix.bias")
    assert Problem(model, ["head.weight"], torch.zeros(1, 3).long(), "causal_lm").layout.names == (
        "embed.weight",
    )
    with pytest.raises(lt.LowtideValueError, match=r"embed\.weight twice"):
        Problem(model, ["head.weight", "embed.weight"], torch.zeros(1, 3).long(), "causal_lm")


def test_bad_arguments_are_refused_by_name():
    model, data = mlp(), classes(4)
    with pytest.raises(lt.LowtideTypeError, match="model must be"):
        Problem(lambda x: x, None, data, "mse")
    with pytest.raises(lt.LowtideValueError, match="no parameter named 'nope'"):
        Problem(model, ["nope"], data, "mse")
    with pytest.raises(lt.LowtideValueError, match=r"params\[0\] of shape \(2,\)"):
        Problem(model, [torch.ones(2)], data, "mse")
    with pytest.raises(lt.LowtideValueError, match="params is empty"):
        Problem(model, [], data, "mse")
    with pytest.raises(lt.LowtideTypeError, match="one-shot generator"):
        Problem(model, None, (b for b in data), "cross_entropy")
    with pytest.raises(lt.LowtideTypeError, match="data must be"):
        Problem(model, None, 3, "cross_entropy")
    with pytest.raises(lt.LowtideValueError, match="loss_fn must be one of"):
        Problem(model, None, data, "hinge")
    with pytest.raises(lt.LowtideValueError, match="reduction='sum'"):
        Problem(model, None, data, nn.CrossEntropyLoss(reduction="sum"))
    with pytest.raises(lt.LowtideValueError, match="state must be"):
        Problem(model, None, data, "cross_entropy", state="train")
    with pytest.raises(lt.LowtideValueError, match="weight must be"):
        Problem(model, None, data, "cross_entropy", weight="mean")
    with pytest.raises(lt.LowtideTypeError, match="must return one floating-point number"):
        Problem(model, None, data, lambda m, b: m(b[0])).evaluate()
    with pytest.raises(lt.LowtideRuntimeError, match="depends on none of params"):
        Problem(model, None, data, lambda m, b: m(b[0]).sum().detach()).gradient()
    with pytest.raises(lt.LowtideValueError, match="broadcasting"):
        Problem(model, None, (torch.ones(3, 4).double(), torch.ones(3).double()), "mse").evaluate()
    with pytest.raises(lt.LowtideValueError, match="at least one batch"):
        Problem(model, None, [], "cross_entropy").evaluate()


@pytest.mark.parametrize("form", ["list", "function", "loader", "shuffled"])
def test_uneven_batches_give_the_mean_over_samples(form):
    model, batches = mlp(), classes(9, 2, 5)
    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    data = {
        "list": batches,
        "function": lambda: iter(batches),
        "loader": torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=7),
        "shuffled": torch.utils.data.DataLoader(
            torch.utils.data.TensorDataset(x, y), batch_size=7, shuffle=True
        ),
    }[form]
    problem = Problem(model, None, data, nn.CrossEntropyLoss())
    loss = F.cross_entropy(model(x), y)
    want = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])
    with unchanged(model):
        assert problem.evaluate() == pytest.approx(loss.item(), rel=1e-14)
        torch.testing.assert_close(problem.gradient(), want, rtol=1e-12, atol=1e-14)
        weights = [w for _, w in problem.batches()]
    assert sum(weights) == pytest.approx(1)


def test_a_shuffling_loader_gives_one_order_and_keeps_its_generator():
    g = torch.Generator().manual_seed(5)
    data = torch.utils.data.TensorDataset(torch.arange(20.0))
    loader = torch.utils.data.DataLoader(data, batch_size=4, shuffle=True, generator=g)
    problem = Problem(mlp(), None, loader, lambda m, b: m[0].weight.sum())
    before = g.get_state()
    passes = [torch.cat([b[0] for b, _ in problem.batches()]).tolist() for _ in range(2)]
    assert passes[0] == passes[1] != list(range(20))
    assert torch.equal(before, g.get_state())


def test_batches_may_be_weighted_otherwise():
    model, batches = mlp(), classes(9, 3)
    losses = [F.cross_entropy(model(x), y).item() for x, y in batches]
    plain = Problem(model, None, batches, "cross_entropy", weight="batches")
    assert plain.evaluate() == pytest.approx(sum(losses) / 2, rel=1e-14)
    own = Problem(model, None, batches, "cross_entropy", weight=lambda b: 9.0 / len(b[1]))
    assert own.evaluate() == pytest.approx((losses[0] + 3 * losses[1]) / 4, rel=1e-14)


def test_data_that_change_are_noticed():
    batches = classes(4, 4)
    problem = Problem(mlp(), None, lambda: iter(batches), "cross_entropy")
    problem.evaluate()
    batches.pop()
    with pytest.raises(lt.LowtideRuntimeError, match="had 2 batches, at batch 1"):
        problem.evaluate()
    batches += classes(4, 4)
    with pytest.raises(lt.LowtideRuntimeError, match="had 2 batches, at batch 3"):
        problem.evaluate()
    batches[:] = classes(4, 3)
    with pytest.raises(lt.LowtideRuntimeError, match="at batch 2"):
        problem.evaluate()


def test_weights_of_cross_entropy_count_what_torch_divides_by():
    model = mlp()
    batches = classes(6, 5, 2)
    batches[0][1][:3] = -100
    batches[2][1][:] = -100  # a batch in which nothing counts weighs nothing
    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    criterion = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 0.5]).double(), label_smoothing=0.1)
    assert Problem(model, None, batches, criterion).evaluate() == pytest.approx(
        criterion(model(x), y).item(), rel=1e-14
    )


def test_every_form_of_batch_of_a_language_model():
    model = seeded(0, Tied)
    g = torch.Generator().manual_seed(0)
    ids = torch.randint(6, (3, 5), generator=g)
    mask = torch.ones(3, 5).long()
    mask[0, 3:] = 0
    labels = ids.masked_fill(mask == 0, -100)
    logits = model(ids)
    whole = F.cross_entropy(logits[:, :-1].reshape(-1, 6), ids[:, 1:].reshape(-1)).item()
    masked = F.cross_entropy(logits[:, :-1].reshape(-1, 6), labels[:, 1:].reshape(-1)).item()

    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model

        def forward(self, input_ids, attention_mask=None):
            return self.inner(input_ids)

    assert Problem(model, None, ids, "causal_lm").evaluate() == pytest.approx(whole, rel=1e-6)
    assert Problem(model, None, (ids, labels), "causal_lm").evaluate() == pytest.approx(masked, rel=1e-6)
    batch = {"input_ids": ids, "attention_mask": mask}
    assert Problem(Named(), None, batch, "causal_lm").evaluate() == pytest.approx(masked, rel=1e-6)
    # Uneven batches weigh by tokens that count.
    split = [(ids[:1], labels[:1]), (ids[1:], labels[1:])]
    assert Problem(model, None, split, "causal_lm").evaluate() == pytest.approx(masked, rel=1e-6)


def test_low_precision_models_are_evaluated_in_float32():
    model = mlp(torch.bfloat16)
    (x, y), exact = classes(8, dtype=torch.bfloat16)[0], mlp(torch.float32)
    exact.load_state_dict({k: v.float() for k, v in model.state_dict().items()})
    problem = Problem(model, None, (x, y), "cross_entropy")
    with unchanged(model):
        gradient = problem.gradient()
    want = torch.autograd.grad(F.cross_entropy(exact(x.float()), y), list(exact.parameters()))
    assert gradient.dtype == torch.float32
    torch.testing.assert_close(gradient, torch.cat([g.flatten() for g in want]), rtol=1e-6, atol=1e-7)


def test_nothing_is_changed_also_when_the_loss_raises():
    model = seeded(3, BatchNormNet).train()
    model.norm.eval()
    model.norm.train()
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    model.head.bias.requires_grad_(False)
    data = [(torch.randn(5, 1, 4, 4), torch.randint(2, (5,))) for _ in range(2)]
    calls = []

    def loss(model, batch):
        calls.append(torch.rand(()).item())
        value = F.cross_entropy(model(batch[0]), batch[1])
        if len(calls) == 4:
            raise ValueError("second batch")
        return value

    for state in ("freeze", "eval"):
        problem = Problem(model, None, data, loss, state=state)
        calls.clear()
        with unchanged(model):
            problem.evaluate()
            with pytest.raises(ValueError, match="second batch"):
                problem.gradient()
        assert calls[:2] == calls[2:]  # the same random numbers in both passes
        assert calls[0] != calls[1]


def test_progress_shows_a_bar(capsys):
    pytest.importorskip("tqdm")
    Problem(mlp(), None, classes(3, 3), "cross_entropy", progress=True).evaluate()
    assert "0/2" in capsys.readouterr().err
