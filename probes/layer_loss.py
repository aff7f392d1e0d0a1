"""What NutePrune's layer loss is about: the scale of every layer's states, and the loss of students with random gates.

    python probes/layer_loss.py --text DIR/calibration/c4_redpajama_2k.jsonl

First token apart, since models keep huge activations there. The students are draws of untrained gates at a few levels of
log-alpha, on MLP channels alone; their teacher is the dense model.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import Tensor

from prunebench.methods.learning.gates.gates import GateKinds, GateSet
from prunebench.methods.nuteprune.distillation import layer_loss
from prunebench.models.anatomy import Anatomy
from prunebench.models.gating.soft_masks import Gates, apply_gates
from prunebench.models.loading import ModelSpec, load_model


def size(state: Tensor) -> str:
    """Root mean square, and the largest magnitude."""
    return f"{state.square().mean().sqrt():.1f} | {state.abs().max():.0f}"


@torch.no_grad()
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True, help="JSON Lines with a field text")
    parser.add_argument("--model", default="embedded:smollm2-135m-instruct")
    parser.add_argument("--tokens", type=int, default=256, help="of each of four texts")
    parser.add_argument("--draws", type=int, default=3, help="students at each level")
    arguments = parser.parse_args()
    loaded = load_model(ModelSpec(name=arguments.model))
    model, anatomy = loaded.model.eval(), Anatomy.from_model(loaded.model)
    texts = [json.loads(line)["text"] for line in arguments.text.read_text(encoding="utf-8").splitlines()]
    ids = [loaded.tokenizer(text)["input_ids"][: arguments.tokens] for text in texts[:200]]
    tokens = torch.tensor([one for one in ids if len(one) == arguments.tokens][:4])
    if not len(tokens):
        raise SystemExit(f"--text {arguments.text} has no text of --tokens {arguments.tokens} tokens; give a smaller number.")

    def states() -> list[Tensor]:
        return [state.float() for state in model(tokens, output_hidden_states=True).hidden_states[1:]]

    teacher = states()
    print("| after layer | first token, rms | largest | others, rms | largest |\n| ---: | ---: | ---: | ---: | ---: |")
    for index in range(0, len(teacher), max(1, len(teacher) // 6)):
        print(f"| {index} | {size(teacher[index][:, :1])} | {size(teacher[index][:, 1:])} |")
    live, generator = Gates(), torch.Generator().manual_seed(0)
    applied = apply_gates(model, anatomy, live)
    gates = GateSet(anatomy, GateKinds(heads=False, hidden=False), generator)
    print("\n| log-alpha | draw | absolute | without first tokens | relative |\n| ---: | ---: | ---: | ---: | ---: |")
    for level in (4.0, 2.5, 1.5):
        gates.log_alpha["ffn"].fill_(level)
        for draw in range(arguments.draws):
            gates.as_gates(gates.sample(generator), live)
            pairs = list(zip(states(), teacher, strict=True))
            absolute, rest = sum(layer_loss(*pair) for pair in pairs), sum(layer_loss(s[:, 1:], t[:, 1:]) for s, t in pairs)
            relative = sum(layer_loss(*pair, "relative") for pair in pairs)
            print(f"| {level} | {draw} | {absolute:.0f} | {rest:.0f} | {relative:.2f} |", flush=True)
    applied.remove()
    return 0


if __name__ == "__main__":
    sys.exit(main())
