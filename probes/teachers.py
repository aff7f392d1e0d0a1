"""How good NutePrune's teachers are: the loss of student and teacher on held-out text while a grid's pruning stage runs.

    python probes/teachers.py findings/nuteprune/grid.yaml --data DIR

The first NutePrune of the grid with its seed and sparsity, without the fine-tuning. Both losses are in nats a label token, on the
same held-out examples of the pruning text, with the gates as they stand (no noise), as a snapshot has them. The student's loss
under its own past is only worth following if that past is better than the student is.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from prunebench.experiments.hashing import seed_for
from prunebench.experiments.load_config import load_config
from prunebench.methods.data import PruningData
from prunebench.methods.learning.gates.hardening import deterministic_values
from prunebench.methods.learning.text.cross_entropy import cross_entropy
from prunebench.methods.learning.text.packing import Pack, PackSampler, lm_loss
from prunebench.methods.learning.text.precision import computing_in
from prunebench.methods.nuteprune import pruner
from prunebench.methods.nuteprune.teaching import Distill
from prunebench.methods.pruner import Run
from prunebench.models.budget import Budget
from prunebench.models.loading import load_model


class Watched(Distill):
    """Says what student and teacher are worth before every `every`-th step."""

    packs: list[Pack]
    every: int

    def step(self, step: int) -> dict[str, float]:
        if step % self.every == 0 or step + 1 == self.steps:
            self._report(step)
        return super().step(step)

    @torch.no_grad()
    def _report(self, step: int) -> None:
        learner = self.learner
        index = learner.teachers.select(self.steps - step)
        learner.gates.as_gates(deterministic_values(learner.gates, learner.anatomy), learner.live)  # the step draws its own
        totals = [0.0, 0.0]
        with computing_in(learner.config.compute_dtype, learner.model.device):
            for pack in self.packs:
                here = pack.to(learner.model.device)  # which may add predictions without target
                theirs = learner.teacher_logits(here, index)
                totals[0] += lm_loss(learner.model, here).item() * len(pack.targets)
                totals[1] += cross_entropy(theirs[here.predict_at], here.targets).item() * len(pack.targets)
        labels = sum(len(pack.targets) for pack in self.packs)
        student = learner.size.sparsity(learner.gates.open_probabilities()).item()
        teacher = 0.0 if index is None else learner.teachers.sparsities[index]
        name = "dense" if index is None else f"{teacher:.1%}"
        print(f"| {step} | {student:.1%} | {name} | {totals[0] / labels:.3f} | {totals[1] / labels:.3f} |", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, help="a grid with NutePrune")
    parser.add_argument("--data", type=Path, required=True, help="folder of benchmark data")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as of run_all.py")
    parser.add_argument("--every", type=int, default=8, help="steps between two reports")
    parser.add_argument("--examples", type=int, default=8, help="held-out examples")
    arguments = parser.parse_args()
    grid = load_config(arguments.config, arguments.set)
    choice = next(choice for choice in grid.grid.method if choice.name == "nuteprune")
    settings = grid.method_config.get("nuteprune", {}) | choice.config | {"finetune_epochs": 0}
    loaded = load_model(grid.grid.model[0])
    seed = grid.grid.seed[0]
    data = PruningData(torch.empty(0, 0, dtype=torch.int64), "none", loaded.tokenizer, seed_for(seed, "calibration"), arguments.data)
    method = pruner.NutePrune(pruner.NutePruneConfig(**settings))
    held_out = data.training_text(method.config.text).validation[: arguments.examples]
    sampler = PackSampler(held_out, method.config.batch_tokens, 0)
    Watched.packs, Watched.every = [sampler.next() for _ in range(sampler.packs_per_epoch)], arguments.every
    pruner.Distill = Watched  # type: ignore[misc]
    print("| step | student | teacher | student's loss | teacher's loss |\n| ---: | ---: | ---: | ---: | ---: |")
    with tempfile.TemporaryDirectory() as folder:
        run = Run(seed=seed_for(seed, "prune"), device=torch.device(loaded.model.device), folder=Path(folder))
        method.prune(loaded.model.eval(), Budget(grid.grid.sparsity[0], grid.grid.basis), data, run)
    return 0


if __name__ == "__main__":
    sys.exit(main())
