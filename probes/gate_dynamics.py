"""How gates and multipliers move under given learning rates, without a language model: seconds instead of an hour a setting.

    python probes/gate_dynamics.py --steps 189 --ramp 148 --sparsity 0.2 --mask-lr 0.2 --multiplier-lr 0.1 --lambda2-start 0 1000

The gates, the expected size, the Lagrangian and the optimiser are those of `methods.learning` on SmolLM2-135M's shape. The
language model is replaced by a cost for each closed unit, drawn from a log-normal, and noise of twice that cost; both were
scaled until a real run that swung around its target (findings/compresso) swung here as wide and at the same steps. It says
whether a schedule may be followed, nothing about scores.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from prunebench.methods.learning.gates.expected_size import ExpectedSize
from prunebench.methods.learning.gates.gates import GateKinds, GateSet
from prunebench.methods.learning.gates.lagrangian import Lagrangian
from prunebench.methods.learning.gates.schedule import Ramp, target_sparsity
from prunebench.models.anatomy import Anatomy
from prunebench.models.loading import EMBEDDED_SHAPES

COSTS = {"kv_groups": (0.018, 1.0), "ffn": (1.2e-4, 1.0), "hidden": (0.018, 0.7)}  # median nats of one closed unit, spread of its log
NOISE = 2.0  # of a step's gradient, in costs
SHOWN = 7


def follow(
    anatomy: Anatomy,
    *,
    mask_lr: float,
    multiplier_lr: float,
    lambda2_start: float,
    sparsity: float,
    steps: int,
    ramp_steps: int,
    ramp: Ramp,
    hidden: bool,
) -> list[tuple[float, float]]:
    """(expected, target) sparsity of every step."""
    generator = torch.Generator().manual_seed(0)
    gates = GateSet(anatomy, GateKinds(hidden=hidden), generator)
    gates.clamp()
    size, lagrangian = ExpectedSize(anatomy, "blocks"), Lagrangian(lambda2_start=lambda2_start)
    cost = {
        kind: COSTS[kind][0] * torch.exp(COSTS[kind][1] * torch.randn(parameter.shape, generator=generator))
        for kind, parameter in gates.log_alpha.items()
    }
    optimizer = torch.optim.AdamW(
        [
            {"params": list(gates.log_alpha.values()), "lr": mask_lr},
            {"params": [lagrangian.multipliers], "lr": multiplier_lr, "maximize": True},
        ],
        weight_decay=0.0,
    )
    followed = []
    for step in range(steps):
        loss = torch.zeros(())
        for kind, value in gates.sample(generator).items():
            slope = cost[kind] * (NOISE * torch.randn(value.shape, generator=generator) - 1)
            loss = loss + (slope * value).sum()
        target = target_sparsity(step, ramp_steps, sparsity, ramp=ramp)
        expected = size.sparsity(gates.as_open(gates.probabilities()))
        (loss + lagrangian(expected, target)).backward()
        optimizer.step()
        optimizer.zero_grad()
        gates.clamp()
        followed.append((expected.item(), target))
    return followed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=189)
    parser.add_argument("--ramp", type=int, default=148, help="steps in which the target rises")
    parser.add_argument("--schedule", choices=("linear", "cubic"), default="linear")
    parser.add_argument("--sparsity", type=float, nargs="+", default=[0.2, 0.35])
    parser.add_argument("--mask-lr", type=float, nargs="+", default=[0.1, 0.2])
    parser.add_argument("--multiplier-lr", type=float, nargs="+", default=[0.1])
    parser.add_argument("--lambda2-start", type=float, nargs="+", default=[0.0, 1000.0])
    parser.add_argument("--no-hidden", action="store_true", help="no gates on the residual width")
    arguments = parser.parse_args()
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        anatomy = Anatomy.from_model(AutoModelForCausalLM.from_config(AutoConfig.for_model(**EMBEDDED_SHAPES["smollm2-135m-instruct"])))
    shown = [round((i + 1) * arguments.steps / SHOWN) - 1 for i in range(SHOWN)]
    places = ", ".join(str(step + 1) for step in shown)
    print(f"{'sparsity':>8} {'mask lr':>8} {'mult. lr':>8} {'lambda2':>8}  expected/target at step {places}")
    settings = itertools.product(arguments.sparsity, arguments.mask_lr, arguments.multiplier_lr, arguments.lambda2_start)
    for sparsity, mask_lr, multiplier_lr, lambda2_start in settings:
        followed = follow(
            anatomy,
            mask_lr=mask_lr,
            multiplier_lr=multiplier_lr,
            lambda2_start=lambda2_start,
            sparsity=sparsity,
            steps=arguments.steps,
            ramp_steps=arguments.ramp,
            ramp=arguments.schedule,
            hidden=not arguments.no_hidden,
        )
        places = "  ".join(f"{followed[step][0]:.3f}/{followed[step][1]:.3f}" for step in shown)
        print(f"{sparsity:>8} {mask_lr:>8} {multiplier_lr:>8} {lambda2_start:>8}  {places}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
