"""Requests as a chat: the harness's own rules, in the tokenizer's own template."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from prunebench.models.errors import BadInput

PROBE = "prunebench"
"""A text that no template holds by itself."""


@dataclass(frozen=True)
class Chat:
    """A chat template, called as the harness calls it; examples are turns of the conversation, as is its default.

    template: the source text. system: what the system message says before the task's own description; None for nothing.
    takes_system: whether the template shows system messages at all; the harness leaves them away where it doesn't.
    sample: a short conversation in it.
    """

    tokenizer: Any
    name: str
    template: str
    system: str | None
    takes_system: bool
    sample: str

    def __call__(self, history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        from lm_eval.models.huggingface import HFLM

        backend: Any = SimpleNamespace(tokenizer=self.tokenizer, chat_template_args={"chat_template": self.template})
        return str(HFLM.apply_chat_template(backend, history, add_generation_prompt))

    @property
    def identity(self) -> dict[str, str | None]:
        """All that its requests depend on beside the tokenizer; the sample holds the date where the template writes it."""
        return {"template": self.template, "system": self.system, "sample": self.sample}

    @property
    def description(self) -> str:
        """For the definition of a result."""
        called = "the tokenizer's chat template" + (f" '{self.name}'" if self.name != "default" else "")
        return f"{called}, examples as turns" + (f", system text {self.system!r}" if self.system else "")

    @property
    def notes(self) -> list[str]:
        """What to know of scores in this template."""
        return ["the chat template writes today's date into every request"] if "strftime_now" in self.template else []


def chat_of(tokenizer: Any, chat_template: bool | str | None, system: str | None = None) -> Chat | None:
    """The chat that the options ask for; None for plain text.

    Args:
        chat_template: True for the tokenizer's default template, or the name of one of several; None or False for none.
        system: text of the system message.

    Raises:
        BadInput: no template, an unknown one, one that can't be rendered; `system` that nothing would show.
    """
    if chat_template is None or chat_template is False:
        if system is not None:
            raise BadInput("system is given without chat_template, so no request would hold it; add chat_template: true.")
        return None
    if system is not None and not system.strip():
        raise BadInput("system is empty; give a text, or leave it out.")
    if chat_template == "":
        raise BadInput("chat_template is ''; give true, false, or the name of a template.")
    held = getattr(tokenizer, "chat_template", None)
    if not held:
        raise BadInput("chat_template is set, but the tokenizer has no chat template; leave it out, or use a chat model's tokenizer.")
    templates = held if isinstance(held, dict) else {"default": held}
    name = "default" if chat_template is True else chat_template
    if name not in templates:
        known = f"it has {', '.join(sorted(templates))}" if isinstance(held, dict) else "it has one without a name, for chat_template: true"
        raise BadInput(f"chat_template names '{name}', which the tokenizer doesn't have; {known}.")
    sample, takes_system = _tried(tokenizer, templates[name])
    if system is not None and not takes_system:
        raise BadInput("system is given, but the tokenizer's chat template shows no system message; leave it out.")
    return Chat(tokenizer, name, templates[name], system, takes_system, sample)


def _tried(tokenizer: Any, template: str) -> tuple[str, bool]:
    """A user's message in the template, and whether it shows system messages."""
    from jinja2 import TemplateError

    user, system = ({"role": role, "content": f"{PROBE} {role}"} for role in ("user", "system"))

    def render(*messages: dict[str, str]) -> str:
        return str(tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True, chat_template=template))

    try:
        sample = render(user)
    except TemplateError as error:
        raise BadInput(f"The tokenizer's chat template can't render a user's message ({error}).") from None
    if user["content"] not in sample:
        raise BadInput("The tokenizer's chat template doesn't show a user's message.")
    try:
        return sample, system["content"] in render(system, user)
    except TemplateError:
        return sample, False
