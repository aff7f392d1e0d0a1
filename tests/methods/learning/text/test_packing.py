"""Packed examples are scored as if each were alone, in every family; the sampler's place is two numbers."""

import pytest
import torch

from prunebench.methods.data.training_text import Example
from prunebench.methods.learning.text.packed_attention import can_split
from prunebench.methods.learning.text.packing import ROUND, Pack, PackSampler, lm_loss, pack_logits, with_prompt
from prunebench.models.errors import BadInput
from prunebench.models.tiny import FAMILIES, random_tokens, tiny_model

EXAMPLES = [
    Example(random_tokens(1, length, seed=seed)[0], prompt) for seed, (length, prompt) in enumerate([(11, 4), (5, 0), (20, 12), (7, 6)])
]


@pytest.mark.parametrize("family", FAMILIES)
def test_no_example_sees_another(family):
    model = tiny_model(family)
    with torch.no_grad():
        packed = pack_logits(model, Pack.of(EXAMPLES))
        alone = torch.cat([pack_logits(model, Pack.of([example])) for example in EXAMPLES])
    torch.testing.assert_close(packed, alone, atol=1e-5, rtol=1e-4)


def test_the_loss_is_the_plain_masked_language_model_loss():
    model = tiny_model("llama")
    example = EXAMPLES[0]
    with torch.no_grad():
        ours = lm_loss(model, Pack.of([example]))
        theirs = model(input_ids=example.tokens[None], labels=example.labels[None]).loss
    torch.testing.assert_close(ours, theirs)


def test_the_loss_of_a_pack_is_the_mean_over_all_its_labels():
    model = tiny_model("llama")
    with torch.no_grad():
        losses = [lm_loss(model, Pack.of([example])) for example in EXAMPLES]
        counts = [len(Pack.of([example]).targets) for example in EXAMPLES]
        mean = sum(loss * count for loss, count in zip(losses, counts, strict=True)) / sum(counts)
        torch.testing.assert_close(lm_loss(model, Pack.of(EXAMPLES)), mean)


def test_the_prompt_carries_no_label_and_the_first_response_token_does():
    prompt = torch.tensor([3, 4, 5])
    (example,) = with_prompt([Example(torch.tensor([6, 7, 8, 9]), 2)], prompt)
    assert example.tokens.tolist() == [3, 4, 5, 6, 7, 8, 9]
    assert example.labels.tolist() == [-100, -100, -100, -100, -100, 8, 9]
    pack = Pack.of([example])
    assert pack.predict_at.tolist() == [4, 5]
    assert pack.targets.tolist() == [8, 9]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_shared_prefix_counts_as_one_before_each_example(family):
    """The same labels in the same order with the same logits; the first token of plain text is predicted by the prefix."""
    model = tiny_model(family)
    prefix = torch.tensor([9, 8, 7, 6])
    shared, apart = Pack.after(prefix, EXAMPLES), Pack.of(with_prompt(EXAMPLES, prefix))
    if not can_split(model):
        assert model.config.sliding_window is not None
        with pytest.raises(BadInput, match="can't share a prefix"):
            pack_logits(model, shared)
        return
    assert shared.num_tokens == 4 + sum(len(example.tokens) for example in EXAMPLES)
    assert torch.equal(shared.targets, apart.targets)
    with torch.no_grad():
        logits = [pack_logits(model, pack)[pack.predict_at] for pack in (shared, apart)]
        torch.testing.assert_close(logits[0], logits[1], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("prefix", [None, torch.tensor([9, 8, 7, 6])], ids=["plain", "prefix"])
@pytest.mark.parametrize("family", ["llama", "qwen3", "mistral", "gemma3"])
def test_a_rounded_pack_gives_the_same_logits_and_loss(family, prefix):
    model = tiny_model(family)
    if prefix is not None and not can_split(model):
        return
    pack = Pack.of(EXAMPLES) if prefix is None else Pack.after(prefix, EXAMPLES)
    rounded = pack.rounded()
    assert (rounded.tokens.numel() % ROUND, len(rounded.targets) % ROUND) == (0, 0)
    assert (rounded.num_tokens, rounded.num_sequences) == (pack.num_tokens, pack.num_sequences)
    assert rounded.rounded() is rounded
    with torch.no_grad():
        torch.testing.assert_close(pack_logits(model, rounded)[: pack.num_tokens], pack_logits(model, pack), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(lm_loss(model, rounded), lm_loss(model, pack))


@pytest.mark.parametrize("family", ["llama", "llama_mqa", "qwen3", "phi3"])
def test_gradients_are_those_of_attention_over_the_whole_row(family):
    """Eager attention is not split: there transformers masks the row."""
    gradients = []
    for implementation in ("sdpa", "eager"):
        model = tiny_model(family)
        model.set_attn_implementation(implementation)
        assert can_split(model) == (implementation == "sdpa")
        lm_loss(model, Pack.of(EXAMPLES)).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], atol=1e-5, rtol=1e-3, msg=name)


def test_only_products_in_bfloat16_on_a_cpu_are_rounded():
    pack, cpu = Pack.of(EXAMPLES), torch.device("cpu")
    assert pack.to(cpu).tail == 0
    with torch.autocast("cpu", torch.bfloat16):
        assert pack.to(cpu).tail == -pack.num_tokens % ROUND


def test_packs_with_a_prefix_do_not_overflow():
    sampler = PackSampler(EXAMPLES, 32, seed=0, prefix=torch.tensor([9, 8, 7]))
    packs = [sampler.next() for _ in range(sampler.packs_per_epoch)]
    assert max(pack.num_tokens for pack in packs) <= 32
    assert all(pack.tokens[0, :3].tolist() == [9, 8, 7] for pack in packs)
    assert sum(pack.num_tokens - 3 for pack in packs) == sum(len(example.tokens) for example in EXAMPLES)


def test_an_epoch_sees_every_example_once_and_packs_do_not_overflow():
    examples = [Example(torch.full((1 + i % 9,), i + 3), 0) for i in range(50)]
    sampler = PackSampler(examples, 20, seed=0)
    packs = [sampler.next() for _ in range(sampler.packs_per_epoch)]
    assert max(pack.num_tokens for pack in packs) <= 20
    seen = [int(pack.tokens[0, i]) for pack in packs for i in (pack.position_ids[0] == 0).nonzero().flatten()]
    assert sorted(seen) == [i + 3 for i in range(50)]


def test_a_sampler_goes_on_from_its_place_also_in_a_later_epoch():
    whole = PackSampler(EXAMPLES, 16, seed=5)
    packs = [whole.next() for _ in range(9)]
    part = PackSampler(EXAMPLES, 16, seed=5)
    for _ in range(6):
        part.next()
    resumed = PackSampler(EXAMPLES, 16, seed=5)
    resumed.go_to(part.epoch, part.index)
    assert part.epoch > 0
    for expected in packs[6:]:
        assert torch.equal(resumed.next().tokens, expected.tokens)


def test_no_text_is_refused():
    with pytest.raises(BadInput, match="no training text"):
        PackSampler([], 16, seed=0)
