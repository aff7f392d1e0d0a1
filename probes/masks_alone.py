"""What masks are worth by themselves: the dense weights under each run's masks, without anything that was trained.

    python probes/masks_alone.py OUT --data DIR
    python probes/masks_alone.py OUT --data DIR --recover 100000 --learning-rate 5e-4

For every finished cell of the folder OUT (a recovery changes no masks, so equal masks are shown once): perplexities at 2048
tokens and the loss on held-out Alpaca responses, in nats a label token. Tells choosing from training, and text learnt from
other text. With --recover, the same after a recovery with so many tokens of Alpaca, equal for all: tells masks that hurt little
from masks that can be made up for.
"""

from __future__ import annotations

import argparse
import copy
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from transformers import PreTrainedModel

from prunebench.evaluation.catalogue import ProtocolRequest
from prunebench.evaluation.runner import evaluate
from prunebench.leaderboard.collect import collect
from prunebench.leaderboard.record import cell_dir, read_records
from prunebench.methods.data import PruningData
from prunebench.methods.data.training_text import TrainingConfig
from prunebench.methods.learning.text.packing import lm_loss
from prunebench.methods.pruner import Run
from prunebench.methods.recovery.batches import packed
from prunebench.methods.recovery.lora import LoraRecoveryConfig, recover_lora
from prunebench.models.loading import ModelSpec, load_model
from prunebench.models.masks import Masks
from prunebench.models.slice import slice_model

PACK_TOKENS = 1024


@torch.no_grad()
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="output folder of run_all.py")
    parser.add_argument("--data", type=Path, required=True, help="folder of benchmark data")
    parser.add_argument("--model", default="embedded:smollm2-135m-instruct", help="the cells' model")
    parser.add_argument("--only", nargs="+", metavar="CELL", help="these cells only, by the start of their ids")
    parser.add_argument("--blocks", type=int, default=4, help="blocks of 2048 tokens of each text")
    parser.add_argument("--examples", type=int, default=50, help="held-out Alpaca examples")
    parser.add_argument("--recover", type=int, metavar="TOKENS", help="training tokens of a recovery, batches of 8, bfloat16")
    parser.add_argument("--learning-rate", type=float, default=1e-4, help="of the recovery")
    arguments = parser.parse_args()
    loaded = load_model(ModelSpec(name=arguments.model))
    model = loaded.model.eval()
    data = PruningData(torch.empty(0, 0, dtype=torch.int64), "none", loaded.tokenizer, 0, arguments.data)
    text = TrainingConfig(source="alpaca", validation_examples=arguments.examples)
    packs = packed(data.training_text(text).validation, PACK_TOKENS)

    def recover(model: PreTrainedModel) -> None:
        config = LoraRecoveryConfig(
            text=text, token_budget=arguments.recover, batch_size=8, learning_rate=arguments.learning_rate, compute_dtype="bfloat16"
        )
        with tempfile.TemporaryDirectory() as folder:
            recover_lora(model, config, data, Run(seed=0, device=model.device, folder=Path(folder)))

    def row(model: PreTrainedModel, label: str, sparsity: str) -> None:
        request = ProtocolRequest(name="perplexity_2048", limit=arguments.blocks)
        tasks = evaluate(model, loaded.tokenizer, [request], data_dir=arguments.data)[0].tasks
        perplexities = " | ".join(f"{task.value:.1f}" for task in tasks)
        labels = sum(len(pack.targets) for pack in packs)
        loss = sum(lm_loss(model, pack).item() * len(pack.targets) for pack in packs) / labels
        print(f"| {label} | {sparsity} | {perplexities} | {loss:.3f} |", flush=True)

    print("| masks of | sparsity | WikiText-2 | PTB | loss on Alpaca |\n| --- | ---: | ---: | ---: | ---: |")
    row(model, "dense", "")
    records, _ = read_records(arguments.out)
    seen: set[str | None] = set()
    for entry in collect(records)[0]:
        for record in entry.done:
            path = cell_dir(arguments.out, record.run.cell_id) / "masks.safetensors"
            digest = record.provenance.masks_sha256
            is_wanted = arguments.only is None or record.run.cell_id.startswith(tuple(arguments.only))
            if is_wanted and record.run.model == arguments.model and path.is_file() and digest not in seen:
                seen.add(digest)
                label = f"{entry.label}, seed {record.run.seed}, cell {record.run.cell_id[:8]}"
                sparsity = f"{record.run.sparsity:.0%}"
                sliced = slice_model(copy.deepcopy(model), Masks.load(path))
                row(sliced, label, sparsity)
                if arguments.recover:
                    recover(sliced)
                    row(sliced, f"{label}, and recovered", sparsity)
    return 0


if __name__ == "__main__":
    sys.exit(main())
