"""What magnitude removes: the share of the MLPs' output energy that goes with the smallest channels of each layer.

    python probes/magnitude_and_sinks.py --text DIR/calibration/c4_redpajama_2k.jsonl

A channel's energy is (its activation x the norm of its down-projection column)^2, summed over tokens; the first token of a
text, which carries the model's huge activations, apart from all others. A rule that removed channels blindly would remove
their share (--fraction) of it.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import Tensor

from prunebench.models.anatomy import Anatomy
from prunebench.models.loading import ModelSpec, load_model


@torch.no_grad()
def activations(model: Any, anatomy: Anatomy, tokens: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Per layer, the squared activations of every channel, summed over first tokens and over all others."""
    found: list[tuple[Tensor, Tensor]] = []

    def read(module: Any, inputs: tuple[Tensor, ...]) -> None:
        squares = inputs[0].float().square()  # (texts, tokens, channels)
        found.append((squares[:, 0].sum(0), squares[:, 1:].sum((0, 1))))

    handles = [model.get_submodule(layer.mlp.down).register_forward_pre_hook(read) for layer in anatomy.layers if layer.mlp]
    model(tokens.to(model.device))
    for handle in handles:
        handle.remove()
    return found


@torch.no_grad()
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True, help="JSON Lines with a field text")
    parser.add_argument("--model", default="embedded:smollm2-135m-instruct")
    parser.add_argument("--fraction", type=float, default=0.22, help="of a layer's channels that goes")
    parser.add_argument("--skip", type=int, nargs=2, default=(3, 1), metavar=("FIRST", "LAST"), help="layers that are spared")
    arguments = parser.parse_args()
    loaded = load_model(ModelSpec(name=arguments.model))
    model, anatomy = loaded.model, Anatomy.from_model(loaded.model)
    texts = [json.loads(line)["text"] for line in arguments.text.read_text(encoding="utf-8").splitlines()[:40]]
    ids = [loaded.tokenizer(text)["input_ids"][:128] for text in texts]
    energies = activations(model, anatomy, torch.tensor([one for one in ids if len(one) == 128]))
    layers = [layer for layer in anatomy.layers if layer.mlp][arguments.skip[0] : len(anatomy.layers) - arguments.skip[1]]
    shares: dict[str, list[tuple[float, float]]] = {"last matrix": [], "all members": []}
    for layer in layers:
        weights = {name: model.get_submodule(path).weight for name, path in (("down", layer.mlp.down), ("gate", layer.mlp.gate.module))}
        weights["up"] = model.get_submodule(layer.mlp.up.module).weight
        column = weights["down"].float().square().sum(0)
        every = column + weights["gate"].float().square().sum(1) + weights["up"].float().square().sum(1)
        first, rest = (energy * column for energy in energies[layer.index])
        for rule, scores in (("last matrix", column), ("all members", every)):
            gone = torch.argsort(scores)[: round(arguments.fraction * len(scores))]
            shares[rule].append((float(first[gone].sum() / first.sum()), float(rest[gone].sum() / rest.sum())))
    print(f"{len(layers)} layers; {arguments.fraction:.0%} of the channels of each go; mean share of the energy that goes with them:")
    for rule, values in shares.items():
        first, rest = (torch.tensor(values).mean(0) * 100).tolist()
        print(f"  L2 of the {rule:<12} first tokens {first:5.1f} %   other tokens {rest:5.1f} %")
    return 0


if __name__ == "__main__":
    sys.exit(main())
