"""The harness's three request types over a plain transformers model, every distinct token computed once."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from prunebench.evaluation.engine.encoding import Encoder
from prunebench.evaluation.engine.generation import NON_FINITE, GenerationRequest, Generator
from prunebench.evaluation.engine.scoring import Score, ScoreRequest, plain_scores
from prunebench.evaluation.engine.self_check import differs_on, make_scorer, refuse_non_causal, usable_rows
from prunebench.evaluation.own_code import is_stock
from prunebench.models.errors import BadInput, PrunebenchError
from prunebench.models.special_tokens import Bos

log = logging.getLogger(__name__)

DEFAULT_MAX_LENGTH = 2048
DEFAULT_NEW_TOKENS = 256
"""What the harness uses where the model or the task says nothing."""


class NonFiniteScore(PrunebenchError):
    """The model gave NaN or infinite logits for a request; `index` is its place in the call."""

    reason = "the model gave logits that are not finite numbers"

    def __init__(self, index: int) -> None:
        super().__init__(f"Request {index}: {self.reason}.")
        self.index = index


class RequestProblem(BadInput):
    """A request that can't be computed; `index` is its place in the call, `reason` ends without a full stop."""

    def __init__(self, index: int, reason: str) -> None:
        super().__init__(f"Request {index}: {reason}.")
        self.index = index
        self.reason = reason


@dataclass
class Answers:
    """Responses in the order of the requests, and the requests that were cut from the left."""

    responses: list[Any]
    truncated: set[int] = field(default_factory=set)


@dataclass
class _Text:
    """Stop condition of one generation request."""

    stops: list[str]
    tail: int
    end_tokens: frozenset[int]
    tokenizer: Any

    def __call__(self, generated: list[int]) -> bool:
        if generated[-1] in self.end_tokens:
            return True
        if not self.stops:
            return False
        end = self.tokenizer.decode(generated[-self.tail :])
        if not any(stop in end for stop in self.stops):
            return False
        text = self.tokenizer.decode(generated)  # the tail alone may split a character
        return any(stop in text for stop in self.stops)


class Engine:
    """Log-likelihoods and greedy texts, as the harness's `hf` backend would return them.

    Args:
        model, tokenizer: a transformers causal LM on its device, and its tokenizer.
        prompt: text put before every request, computed once; a request's own BOS is dropped then. None or "" for none.
        row_tokens: distinct tokens a packed row holds; None chooses by the memory at hand.
        bos: whether a text begins with BOS (see `Encoder`). Something has to stand before a choice without context, so
            there the prefix token stands whatever `bos` is.

    Raises:
        BadInput: the model isn't causal; a prompt that fills the context; `bos` is 'always' and there is no BOS.
    """

    def __init__(
        self, model: Any, tokenizer: Any, prompt: str | None = None, row_tokens: int | None = None, bos: Bos = "tokenizer"
    ) -> None:
        if row_tokens is not None and row_tokens < 1:
            raise BadInput(f"token_budget is {row_tokens}; give a positive number of tokens.")
        model.eval()
        self.model = model
        self.tokenizer = tokenizer
        self.row_tokens = row_tokens
        self.notes: list[str] = []
        context = context_length(model.config, tokenizer)
        refuse_non_causal(model, context)
        self.encoder = Encoder(tokenizer, prompt, bos, usable_rows(model))
        self.prompt_ids = self.encoder.prompt_ids
        if self.encoder.ends:
            self._note(f"the tokenizer ends every text with {self.encoder.shown(self.encoder.ends)}, which is left away here")
        self.max_length = context - len(self.prompt_ids)
        if self.max_length < 2:
            raise BadInput(f"The prompt holds {len(self.prompt_ids)} tokens, which fills the model's whole context.")
        sharing = make_scorer(model, row_tokens, context)
        self.scorer = sharing.scorer
        self.shared_up_to, self.limit = sharing.up_to, sharing.limit
        self.checked_up_to: float = math.inf if is_stock(model) else 0  # tokens; longer requests are compared first
        if sharing.problem:
            self._note(f"{sharing.problem}; every request was computed on its own")
        self.generator = Generator(model, row_tokens)
        self.unusual = unusual_generation(model)
        if self.unusual:
            self._note(f"{self.unusual}; texts were generated one by one")

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)
            log.warning(text)

    @property
    def tokens_computed(self) -> int:
        """Tokens that went through the model so far, prompts and headers counted once."""
        scored = self.scorer.tokens_computed if self.scorer is not None else 0
        return scored + self.generator.tokens_computed

    def score(self, requests: Sequence[ScoreRequest], progress: Callable[[int, int], None] | None = None) -> list[Score]:
        """Scores of token requests; shared where the model allows."""
        together = self._shared([len(request.inputs) for request in requests])
        self._compare([requests[index].inputs for index in together])
        if self.scorer is None:
            return plain_scores(self.model, requests)
        if len(together) == len(requests):
            return self.scorer.score(requests, progress)
        alone = sorted(set(range(len(requests))) - set(together))
        found = dict(zip(alone, plain_scores(self.model, [requests[index] for index in alone]), strict=True))
        if together:
            found |= zip(together, self.scorer.score([requests[index] for index in together], progress), strict=True)
        return [found[index] for index in range(len(requests))]

    def _shared(self, lengths: Sequence[int]) -> list[int]:
        """Which sequences are short enough to share."""
        limit = self.shared_up_to
        if self.scorer is None or limit is None:
            return list(range(len(lengths)))
        found = [index for index, length in enumerate(lengths) if length <= limit]
        if len(found) < len(lengths):
            self._note(f"the model names {self.limit} {limit}: requests with more tokens were computed on their own")
        return found

    def _compare(self, sequences: Sequence[Sequence[int]]) -> None:
        """Compares shared and plain form on the longest sequence; where they differ, nothing is shared any more.

        Only where the model brings code of its own: that of libraries names in its config what it forgets. Nothing to
        do where an earlier sequence was as long.
        """
        longest = max(sequences, key=len, default=())
        if self.scorer is None or len(longest) <= self.checked_up_to or len(longest) < 2:
            return
        difference = differs_on(self.model, self.scorer, longest)
        if difference is None:
            self.checked_up_to = len(longest)
            return
        self.scorer = None
        name = type(self.model).__name__
        self._note(
            f"{name} can't share prefixes between requests of {len(longest)} tokens ({difference}); every request was computed on its "
            "own from there on"
        )

    def loglikelihood(self, pairs: Sequence[tuple[str, str]], progress: Callable[[int, int], None] | None = None) -> Answers:
        """(log-likelihood, is greedy) of each continuation given its context.

        Raises:
            NonFiniteScore: by the index of the request.
            RequestProblem: a continuation without tokens, or longer than the context.
        """
        split = [_moved_spaces(context, continuation) for context, continuation in pairs]
        encoded = self.encoder.encode([c for c, _ in split if c] + [c + t for c, t in split if c])
        alone = self.encoder.encode([t for c, t in split if not c], add_special_tokens=False)
        tokens = []
        for index, (context, continuation) in enumerate(split):
            if context:
                before = encoded[context]
                after = encoded[context + continuation][len(before) :]
                before = self.encoder.behind_prompt(before)
                before = before if before or self.prompt_ids else [self.encoder.prefix_token]
            else:
                before, after = [self.encoder.prefix_token], alone[continuation]
                if after[:1] == before:
                    after = after[1:]
                if self.prompt_ids:
                    before = []
            if not after:
                raise RequestProblem(index, f"the choice {continuation!r} holds no tokens; give it text")
            tokens.append((before, after))
        return self._score_pairs(tokens, progress)

    def _score_pairs(self, tokens: Sequence[tuple[list[int], list[int]]], progress: Callable[[int, int], None] | None) -> Answers:
        answers = Answers([])
        requests = []
        for index, (before, after) in enumerate(tokens):
            if len(after) > self.max_length:
                raise RequestProblem(index, f"a choice holds {len(after)} tokens, more than the model's context of {self.max_length}")
            if len(before) + len(after) > self.max_length + 1:
                answers.truncated.add(index)
            whole = (before + after)[-(self.max_length + 1) :]
            requests.append(ScoreRequest(self.prompt_ids + whole[:-1], after))
        for index, score in enumerate(self.score(requests, progress)):
            if not math.isfinite(score.total):  # NaN spreads to neighbours in a row: ask this request alone
                (score,) = plain_scores(self.model, [requests[index]])
                if not math.isfinite(score.total):
                    raise NonFiniteScore(index)
            answers.responses.append((score.total, score.is_greedy))
        return answers

    def loglikelihood_rolling(self, texts: Sequence[str], progress: Callable[[int, int], None] | None = None) -> Answers:
        """Log-likelihood of each whole text, long ones in windows that don't overlap (the harness's rule).

        The prefix token stands before the first token; where `bos` is 'never', the first token isn't scored instead.
        """
        encoded = self.encoder.encode(texts, add_special_tokens=None if self.encoder.bos == "tokenizer" else False)
        owners: list[int] = []
        tokens: list[tuple[list[int], list[int]]] = []
        for index, text in enumerate(texts):
            ids = self.encoder.behind_prompt(encoded[text])
            if self.prompt_ids:
                windows = [(before[1:] if start == 0 else before, scored) for start, (before, scored) in enumerate(self._windows(0, ids))]
            elif self.encoder.bos == "never":
                windows = self._windows(ids[0], ids[1:]) if ids else []
            else:
                windows = self._windows(self.encoder.prefix_token, ids)
            for window in windows:
                owners.append(index)
                tokens.append(window)
        totals = [0.0] * len(texts)
        for owner, (total, _) in zip(owners, self._score_pairs(tokens, progress).responses, strict=True):
            totals[owner] += total
        return Answers(totals)

    def _windows(self, before: int, ids: list[int]) -> list[tuple[list[int], list[int]]]:
        return disjoint_windows(ids, before, self.max_length)

    def generate_until(
        self,
        requests: Sequence[tuple[str, dict[str, Any]]],
        progress: Callable[[int, int], None] | None = None,
    ) -> Answers:
        """Greedy text after each context, cut at the first stop string.

        Raises:
            RequestProblem: a request that samples; NonFiniteScore: by the index of the request.
        """
        encoded = self.encoder.encode([context for context, _ in requests])
        answers = Answers([])
        prepared = []
        stops = []
        for index, (context, options) in enumerate(requests):
            if options.get("do_sample") or float(options.get("temperature") or 0.0) > 0.0:
                raise RequestProblem(index, "it asks for sampling; only greedy generation is supported")
            new_tokens = _new_tokens(options)
            if self.max_length - new_tokens < 1:
                raise RequestProblem(index, f"it asks for {new_tokens} new tokens; the model's context holds {self.max_length}")
            ids = self.encoder.behind_prompt(encoded[context])
            if len(ids) > self.max_length - new_tokens:
                answers.truncated.add(index)
                ids = ids[-(self.max_length - new_tokens) :]
            if not ids and not self.prompt_ids:
                ids = [self.encoder.prefix_token]
            until = options.get("until") or []
            until = [until] if isinstance(until, str) else list(until)
            stops.append(until)
            prepared.append(GenerationRequest(self.prompt_ids + ids, new_tokens, self._stop(until)))
        generated = self._generate(prepared, progress)
        end_text = self.tokenizer.decode(self.tokenizer.eos_token_id) if self.tokenizer.eos_token_id is not None else ""
        for index, (tokens, until) in enumerate(zip(generated, stops, strict=True)):
            if NON_FINITE in tokens:
                (tokens,) = self._generate([prepared[index]], None)
                if NON_FINITE in tokens:
                    raise NonFiniteScore(index)
            text = self.tokenizer.decode(tokens, skip_special_tokens=True)
            for stop in [*until, end_text]:
                if stop:
                    text = text.split(stop)[0]
            answers.responses.append(text)
        return answers

    def _stop(self, until: list[str]) -> _Text:
        ends = {self.tokenizer.eos_token_id}
        configured = getattr(self.model.generation_config, "eos_token_id", None)
        ends |= set(configured) if isinstance(configured, (list, tuple)) else {configured}
        longest = max((len(stop.encode()) for stop in until), default=0)
        return _Text(
            [stop for stop in until if stop],
            longest + 4,
            frozenset(int(token) for token in ends if token is not None),
            self.tokenizer,
        )

    def _generate(self, requests: list[GenerationRequest], progress: Callable[[int, int], None] | None) -> list[list[int]]:
        together = self._shared([len(request.prompt) + request.max_new_tokens for request in requests])
        if not self.unusual:
            self._compare([_filled(requests[index]) for index in together])
        if self.unusual or self.scorer is None:
            return self._generate_alone(requests, progress)
        if len(together) == len(requests):
            return self.generator.generate(requests, progress)
        alone = sorted(set(range(len(requests))) - set(together))
        found = dict(zip(alone, self._generate_alone([requests[index] for index in alone], None), strict=True))
        found |= zip(together, self.generator.generate([requests[index] for index in together], progress), strict=True)
        return [found[index] for index in range(len(requests))]

    def _generate_alone(self, requests: list[GenerationRequest], progress: Callable[[int, int], None] | None) -> list[list[int]]:
        """The model's own `generate`, one request after the other."""
        import torch
        from transformers import StoppingCriteria, StoppingCriteriaList

        class Finished(StoppingCriteria):
            def __init__(self, request: GenerationRequest) -> None:
                self.request = request

            def __call__(self, ids: torch.Tensor, scores: object, **_: object) -> torch.Tensor:
                new = ids[0, len(self.request.prompt) :].tolist()
                return torch.tensor([self.request.is_finished(new)], device=ids.device)

        device = next(self.model.parameters()).device
        results = []
        for place, request in enumerate(requests):
            ids = torch.tensor([list(request.prompt)], device=device)
            with torch.inference_mode():
                output = self.model.generate(
                    ids,
                    attention_mask=torch.ones_like(ids),
                    do_sample=False,
                    max_new_tokens=request.max_new_tokens,
                    stopping_criteria=StoppingCriteriaList([Finished(request)]),
                )
            results.append(output[0, ids.shape[1] :].tolist())
            if progress is not None:
                progress(place + 1, len(requests))
        return results


def _filled(request: GenerationRequest) -> list[int]:
    """As many tokens as the request can come to: its prompt, again and again."""
    length = len(request.prompt) + request.max_new_tokens
    times = -(-length // len(request.prompt))
    return (list(request.prompt) * times)[:length]


PLAIN_SETTINGS = {
    "repetition_penalty": (None, 1.0),
    "no_repeat_ngram_size": (None, 0),
    "encoder_repetition_penalty": (None, 1.0),
    "bad_words_ids": (None, []),
    "suppress_tokens": (None, []),
    "begin_suppress_tokens": (None, []),
    "forced_bos_token_id": (None,),
    "forced_eos_token_id": (None,),
    "sequence_bias": (None, {}),
    "min_length": (None, 0),
    "min_new_tokens": (None, 0),
    "exponential_decay_length_penalty": (None,),
    "num_beams": (None, 1),
}
"""Generation settings that leave greedy decoding alone."""


def unusual_generation(model: Any) -> str | None:
    """A sentence naming a setting by which the model's `generate` departs from plain greedy decoding, or None."""
    for name, plain in PLAIN_SETTINGS.items():
        value = getattr(model.generation_config, name, None)
        if value not in plain:
            return f"{type(model).__name__} is configured to generate with {name}={value!r}"
    return None


def _moved_spaces(context: str, continuation: str) -> tuple[str, str]:
    """The harness's rule: spaces at the end of the context belong to the continuation."""
    stripped = context.rstrip()
    return stripped, context[len(stripped) :] + continuation


def _new_tokens(options: dict[str, Any]) -> int:
    for name in ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens"):
        if options.get(name) is not None:
            return int(options[name])
    return DEFAULT_NEW_TOKENS


def context_length(config: Any, tokenizer: Any) -> int:
    """Tokens that fit into the model, as the harness finds it: the text model's config, the config, the tokenizer, then 2,048."""
    for part in (getattr(config, "text_config", None), config):
        for name in ("max_position_embeddings", "n_positions", "n_ctx", "seq_length"):
            value = getattr(part, name, None)
            if isinstance(value, int) and value > 0:
                return value
    limit = getattr(tokenizer, "model_max_length", None)
    if isinstance(limit, int) and limit < 10**9:
        return limit
    return DEFAULT_MAX_LENGTH


def disjoint_windows(tokens: list[int], prefix_token: int, length: int) -> list[tuple[list[int], list[int]]]:
    """(context, scored tokens) of windows of at most `length` tokens that score every token once."""
    if not tokens:
        return []
    windows = [([prefix_token], tokens[:length])]
    done = length
    while done < len(tokens):
        scored = tokens[done : done + length]
        end = done + len(scored)
        context = tokens[max(0, end - length - 1) : done]
        windows.append((context, scored))
        done = end
    return windows
