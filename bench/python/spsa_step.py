# SPDX-License-Identifier: Apache-2.0
"""What a MeZO step costs beyond its two forwards, on SmolLM2-135M.

    python bench/python/spsa_step.py [--batch 16] [--tokens 128] [--threads 1,2] [--dists rademacher,gaussian] [--rounds N]
                                     [--model DIR] [--no-save]

Rivals take turns: two evaluations of the model as it is, a whole step of SPSA with the scratch probe (all parameters train), and
MeZO's own loop, which perturbs the weights by +1, -2, +1 with torch's normal numbers. ``over`` is the step's time over
that of its two evaluations, median of the rounds' own ratios. Before timing, one step is verified: masters as before but for the update.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from _timing import environment, rounded, save

import lowtide as lt


class Case:
    def __init__(self, model: Any, batch: int, tokens: int) -> None:
        self.model = model
        ids = torch.randint(
            0, model.config.vocab_size, (batch, tokens), generator=torch.Generator().manual_seed(0)
        )
        self.ids = ids

    @torch.no_grad()
    def loss(self) -> torch.Tensor:
        logits = self.model(input_ids=self.ids, use_cache=False, logits_to_keep=1).logits[:, -1].float()
        return torch.nn.functional.cross_entropy(logits, self.ids[:, 0])

    def forwards(self) -> None:
        for _ in range(2):
            float(self.loss())

    @torch.no_grad()
    def mezo(self, step: int, eps: float = 1e-3) -> None:
        """MeZO's algorithm 1 with torch's random numbers, as its authors write it."""
        params = list(self.model.parameters())

        def move(scale: float) -> None:
            torch.manual_seed(step)
            for p in params:
                p.add_(torch.normal(0.0, 1.0, p.shape, dtype=p.dtype), alpha=scale)

        move(eps)
        plus = float(self.loss())
        move(-2 * eps)
        minus = float(self.loss())
        move(eps)
        move(-1e-9 * (plus - minus) / (2 * eps))


def verify(case: Case, opt: Any) -> None:
    """A step with rate 0 leaves every bit; one without moves every tensor."""
    before = opt.masters.digest()
    rate, opt.param_groups[0]["lr"] = opt.param_groups[0]["lr"], 0.0
    opt.step(case.loss)
    if opt.masters.digest() != before:
        raise RuntimeError("probes changed the weights")
    opt.param_groups[0]["lr"] = rate


def measure(case: Case, dist: str, rounds: int, peer: bool) -> dict[str, Any]:
    opt = lt.spsa.SPSA(case.model.named_parameters(), 1e-9, dist=dist, module=case.model)
    verify(case, opt)
    rivals: dict[str, Any] = {"two forwards": case.forwards, "step": lambda: opt.step(case.loss)}
    if peer:
        rivals["MeZO, torch.normal"] = lambda: case.mezo(1)
    seen: dict[str, list[float]] = {name: [] for name in rivals}
    for _ in range(rounds):
        for name, run in rivals.items():
            start = time.perf_counter()
            run()
            seen[name].append(time.perf_counter() - start)
    base = seen["two forwards"]
    rows = {}
    for name, times in seen.items():
        over = statistics.median(t / b for t, b in zip(times, base, strict=True))
        rows[name] = {"seconds": statistics.median(times), "best": min(times), "over": over}
        print(
            f"  {name:20s} {statistics.median(times):7.3f} s   best {min(times):7.3f} s   over two forwards {over:.3f}",
            flush=True,
        )
    best = rows["step"]["best"] / rows["two forwards"]["best"]
    print(f"  best of the step over best of two forwards: {best:.3f}", flush=True)
    return {**rows, "best_over": best}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--dists", default="rademacher,gaussian")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--no-save", action="store_true")
    options = parser.parse_args()
    import transformers

    from lowtide import assets

    transformers.utils.logging.disable_progress_bar()
    where = options.model or assets.fetch("smollm2-135m")
    model = transformers.AutoModelForCausalLM.from_pretrained(where, dtype=torch.float32).eval()
    case = Case(model, options.batch, options.tokens)
    results = []
    for threads in (int(t) for t in options.threads.split(",")):
        torch.set_num_threads(threads)
        for dist in options.dists.split(","):
            print(f"{threads} threads, {dist}, {options.batch} x {options.tokens} tokens", flush=True)
            row = measure(case, dist, options.rounds, peer=dist == "gaussian")
            results.append(
                {"threads": threads, "dist": dist, "batch": options.batch, "tokens": options.tokens, **row}
            )
    if not options.no_save:
        save("spsa_step", {"environment": environment(), "results": [rounded(row) for row in results]})


if __name__ == "__main__":
    main()
