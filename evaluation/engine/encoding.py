"""From texts to token ids: what begins a text, what stands before every request, and which ids a model can read."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from prunebench.models.errors import BadInput
from prunebench.models.special_tokens import Bos, bos_ids, prompt_ids, special_affixes


class Encoder:
    """A tokenizer under the options of an evaluation.

    Special tokens that the tokenizer puts behind a text are left away: a model that has read the end of a text says
    nothing of what follows, and a choice could not be told from its context.

    Args:
        prompt: text that stands before every request; None or "" for none.
        bos: whether a text begins with BOS: as the tokenizer does it, always or never. Text that holds BOS as text
            keeps it and gets no second one.
        rows: ids from here on have no row in the model; None doesn't check.

    Attributes:
        begins, ends: ids before every text, and those left away behind it.
        prompt_ids: of the prompt, BOS included.

    Raises:
        BadInput: `bos` is 'always' and there is no BOS; an id of the prompt that the model has no row for.
    """

    def __init__(self, tokenizer: Any, prompt: str | None = None, bos: Bos = "tokenizer", rows: int | None = None) -> None:
        self.tokenizer = tokenizer
        self.bos = bos
        self.rows = rows
        _, self.ends = special_affixes(tokenizer)
        self.begins = bos_ids(tokenizer, bos)
        self.prompt_ids = prompt_ids(tokenizer, prompt or "", bos)
        self.check([*self.begins, *self.prompt_ids])

    @property
    def prefix_token(self) -> int:
        """What stands before a text that has no context: BOS, or EOS where there is none."""
        for token in (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id):
            if token is not None:
                self.check([int(token)])
                return int(token)
        raise BadInput("The tokenizer has neither a BOS nor an EOS token, so a text without context can't be scored.")

    def shown(self, ids: Iterable[int]) -> str:
        """Ids as the tokenizer writes them: `'<s>'`."""
        return " ".join(repr(token) for token in self.tokenizer.convert_ids_to_tokens(list(ids)))

    def check(self, ids: Iterable[int]) -> None:
        """
        Raises:
            BadInput: an id that the model has no row for.
        """
        highest = max(ids, default=0)
        if self.rows is not None and highest >= self.rows:
            raise BadInput(
                f"The tokenizer gives {self.shown([highest])} the id {highest}, but the model has {self.rows} rows for tokens "
                f"(ids 0 to {self.rows - 1}); use the tokenizer that belongs to the model."
            )

    def encode(self, texts: Iterable[str], add_special_tokens: bool | None = None) -> dict[str, list[int]]:
        """Token ids of every distinct text: as the harness's `hf` backend has them where `bos` leaves that to the tokenizer.

        The ids that begin a text, but none where it already starts with the BOS (or EOS) text; never any behind it.

        Args:
            add_special_tokens: False for the text alone.

        Raises:
            BadInput: an id that the model has no row for.
        """
        prefix = ""
        if self.tokenizer.bos_token_id is not None or self.tokenizer.eos_token_id is not None:
            prefix = self.tokenizer.decode(self.prefix_token)
        plain: list[str] = []
        special: list[str] = []
        for text in dict.fromkeys(texts):
            has_own = bool(prefix) and text.startswith(prefix)
            (plain if add_special_tokens is False or has_own else special).append(text)
        by_tokenizer = self.bos == "tokenizer" and not self.ends
        found: dict[str, list[int]] = {}
        for group, adds in ((plain, False), (special, True)):
            if not group:
                continue
            encoded = self.tokenizer(group, add_special_tokens=adds and by_tokenizer, verbose=False)["input_ids"]
            begins = self.begins if adds and not by_tokenizer else []
            for text, ids in zip(group, encoded, strict=True):
                self.check(ids)
                found[text] = [*begins, *ids]
        return found

    def behind_prompt(self, ids: list[int]) -> list[int]:
        """Without the ids that begin the text, where a prompt stands before it."""
        if self.prompt_ids:
            for begins in (self.begins, [self.tokenizer.bos_token_id]):
                if begins and ids[: len(begins)] == begins:
                    return ids[len(begins) :]
        return ids
