"""Requests in a chat template are those that lm-eval builds, token for token, and score alike."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from prunebench.evaluation import ProtocolRequest, evaluate, format_table, harness, runner
from prunebench.evaluation.catalogue import ProtocolTask, known_tasks
from prunebench.evaluation.chat import chat_of
from prunebench.evaluation.engine.engine import Engine
from prunebench.evaluation.sources import load_task_data
from prunebench.models.errors import BadInput
from tests.evaluation.conftest import byte_tokenizer, small_model

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WITH_BOS = "{{ bos_token }}" + CHATML
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + CHATML
SILENT = "{% for m in messages if m['role'] != 'system' %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}<assistant>"


def chat_tokenizer(template: Any = CHATML, **options: Any) -> Any:
    tokenizer = byte_tokenizer(**options)
    tokenizer.chat_template = template
    return tokenizer


@pytest.fixture(scope="module")
def model() -> Any:
    return small_model("llama", max_position_embeddings=8192)


SYSTEM = "You answer in one word."
NAMES = ("piqa", "hellaswag", "winogrande", "openbookqa", "boolq", "copa", "mmlu")

# task, shots, template, whether the tokenizer adds BOS, system text
CASES = [
    *((name, 0, CHATML, False, None) for name in NAMES),
    *(("mmlu", shots, CHATML, False, None) for shots in (2, 5)),
    *(
        (name, shots, template, True, SYSTEM)
        for name, shots in (("piqa", 0), ("winogrande", 0), ("mmlu", 2))
        for template in (CHATML, WITH_BOS)
    ),
]
COUNT = 3


def harness_run(model: Any, tokenizer: Any, task: Any, monkeypatch: pytest.MonkeyPatch, **options: Any) -> tuple[Any, list[Any]]:
    """What `simple_evaluate` makes of a task with the `hf` backend: its results, and the tokens of its requests."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    tokens: list[Any] = []
    real = HFLM._loglikelihood_tokens

    def watch(self: Any, requests: Any, **kwargs: Any) -> Any:
        tokens.extend(([*context, *continuation], len(continuation)) for _, context, continuation in requests)
        return real(self, requests, **kwargs)

    monkeypatch.setattr(HFLM, "_loglikelihood_tokens", watch)
    backend = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1)
    manager = TaskManager(include_defaults=False)
    found = simple_evaluate(backend, tasks=[task], task_manager=manager, apply_chat_template=True, bootstrap_iters=10, **options)
    assert found is not None
    return found, tokens


def our_run(model: Any, tokenizer: Any, name: str, shots: int, monkeypatch: pytest.MonkeyPatch, **options: Any) -> tuple[Any, list[Any]]:
    """The part that the runner makes of the same rows, and the tokens that reached the engine."""
    tokens: list[Any] = []
    real = Engine.score

    def watch(self: Any, requests: Any, *rest: Any) -> Any:
        tokens.extend(([*request.inputs, request.targets[-1]], len(request.targets)) for request in requests)
        return real(self, requests, *rest)

    monkeypatch.setattr(Engine, "score", watch)
    definition = known_tasks()[name]
    stratum = definition.all_strata[0]
    run = runner._Run(model, tokenizer, None, 0, None, None, None, None, chat=chat_of(tokenizer, True, **options))
    data = load_task_data(definition, stratum, ("embedded",), None, shots)
    piece = runner._Piece(stratum, data, list(range(COUNT)), "key")
    (part,) = run.parts(definition, ProtocolTask(task=name, shots=shots, metric="acc"), [piece], [], None)
    return part, tokens


def stock_task(name: str, shots: int, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The harness's task with its own template code over the first rows."""
    definition = known_tasks()[name]
    stratum = definition.all_strata[0]
    data = load_task_data(definition, stratum, ("embedded",), None, shots)
    with monkeypatch.context() as patch:
        patch.setattr(harness, "_compile_templates", lambda task: None)
        return harness.build_task(definition, stratum, shots, data.rows[:COUNT], data.fewshot)


@pytest.mark.parametrize(("name", "shots", "template", "adds_bos", "system"), CASES)
def test_requests_and_scores_are_those_of_the_harness(
    model: Any, monkeypatch: pytest.MonkeyPatch, name: str, shots: int, template: str, adds_bos: bool, system: str | None
) -> None:
    tokenizer = chat_tokenizer(template, adds_bos=adds_bos)
    stock = stock_task(name, shots, monkeypatch)
    expected, their_tokens = harness_run(model, tokenizer, stock, monkeypatch, system_instruction=system)
    part, our_tokens = our_run(model, tokenizer, name, shots, monkeypatch, system=system)
    assert our_tokens == their_tokens
    text = tokenizer.decode(our_tokens[0][0])
    assert text.count("<|im_start|>user") == 1 + shots
    assert text.count("<s>") == adds_bos
    assert (system is not None) == (SYSTEM in text)
    (samples,) = expected["samples"].values()
    assert len(samples) == len(part.outcomes) == COUNT
    for sample, outcome in zip(samples, part.outcomes, strict=True):
        theirs = [response[0][0] for response in sample["resps"]]
        assert outcome.choice_loglikelihoods == pytest.approx(theirs, abs=2e-2)
        assert outcome.metrics["acc"] == sample["acc"]


@pytest.mark.parametrize("shots", [0, 3])
def test_generated_answers_are_those_of_the_harness(model: Any, monkeypatch: pytest.MonkeyPatch, shots: int) -> None:
    tokenizer = chat_tokenizer()
    rows = [{"input": f"not ( True ) and {index} is", "target": "False"} for index in range(2)]
    definition = known_tasks()["bbh_direct"]

    def task() -> Any:
        made = harness.build_task(definition, "boolean_expressions", shots, rows, [])
        made.config.generation_kwargs["max_gen_toks"] = 6
        return made

    expected, _ = harness_run(model, tokenizer, task(), monkeypatch, system_instruction="Be brief.")
    groups = harness.build_requests(task(), chat=chat_of(tokenizer, True, "Be brief."))
    instances = [instance for group in groups for instance in group]
    (samples,) = expected["samples"].values()
    assert [instance.args[0] for instance in instances] == [sample["arguments"][0][0] for sample in samples]
    answers = Engine(model, tokenizer).generate_until([instance.args for instance in instances]).responses
    assert answers == [sample["resps"][0][0] for sample in samples]


def test_a_template_without_system_messages_leaves_the_description_out_and_says_so(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = chat_tokenizer(NO_SYSTEM)
    _, their_tokens = harness_run(model, tokenizer, stock_task("mmlu", 2, monkeypatch), monkeypatch)
    part, our_tokens = our_run(model, tokenizer, "mmlu", 2, monkeypatch)
    assert our_tokens == their_tokens
    assert "The following are multiple choice questions" not in tokenizer.decode(our_tokens[0][0])
    assert any("the task's description is left out" in note for note in part.notes)
    part, _ = our_run(model, tokenizer, "piqa", 0, monkeypatch)  # has no description
    assert part.notes == []


def test_one_of_several_templates_is_chosen_by_name() -> None:
    tokenizer = chat_tokenizer({"default": CHATML, "short": SILENT})
    message = [{"role": "user", "content": "Hello"}]
    default, named, short = (chat_of(tokenizer, choice) for choice in (True, "default", "short"))
    assert default is not None
    assert short is not None
    assert default == named
    assert default(message) == "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    assert short(message) == "<user>Hello<assistant>"
    assert default.identity != short.identity


@pytest.mark.parametrize("nothing", [None, False])
def test_no_template_means_plain_text(nothing: bool | None) -> None:
    assert chat_of(chat_tokenizer(), nothing) is None


REFUSED = [
    (None, True, None, "the tokenizer has no chat template"),
    ("", True, None, "the tokenizer has no chat template"),
    (CHATML, None, "Be brief.", "system is given without chat_template"),
    (CHATML, False, "Be brief.", "system is given without chat_template"),
    (CHATML, True, " ", "system is empty"),
    (CHATML, "", None, "chat_template is ''"),
    (CHATML, "rag", None, "chat_template names 'rag', which the tokenizer doesn't have; it has one without a name"),
    ({"default": CHATML, "short": SILENT}, "rag", None, "chat_template names 'rag'.*it has default, short"),
    ({"short": SILENT, "long": CHATML}, True, None, "chat_template names 'default'.*it has long, short"),
    (NO_SYSTEM, True, "Be brief.", "the tokenizer's chat template shows no system message"),
    (SILENT, True, "Be brief.", "the tokenizer's chat template shows no system message"),
    ("{{ raise_exception('no') }}", True, None, r"can't render a user's message \(no\)"),
    ("{{ unclosed", True, None, "can't render a user's message"),
    ("[assistant]", True, None, "doesn't show a user's message"),
]


@pytest.mark.parametrize(("template", "chat_template", "system", "message"), REFUSED)
def test_what_no_request_would_show_is_refused(model: Any, template: Any, chat_template: Any, system: str | None, message: str) -> None:
    with pytest.raises(BadInput, match=message) as caught:
        evaluate(model, chat_tokenizer(template), ["commonsense_extra"], limit=2, chat_template=chat_template, system=system)
    assert "\n" not in str(caught.value)


def test_results_say_how_requests_were_put(tmp_path: Path, model: Any) -> None:
    path = tmp_path / "lambada_openai" / "test.jsonl"
    path.parent.mkdir()
    path.write_text("".join(json.dumps({"text": f"Passage {i} of some words."}) + "\n" for i in range(3)))
    requests = [ProtocolRequest(name="commonsense_extra", limit=2, sources=("embedded",)), ProtocolRequest(name="perplexity_passages")]
    options: dict[str, Any] = {"data_dir": tmp_path, "chat_template": True, "system": "Be brief."}
    chat, passages = evaluate(model, chat_tokenizer(), requests, **options)
    assert chat.definition.endswith("Here: requests in the tokenizer's chat template, examples as turns, system text 'Be brief.'.")
    assert "chat" not in passages.definition
    assert "the chat template isn't used: running text has no turns" in passages.tasks[0].notes
    assert "system text 'Be brief.'" in format_table([chat, passages])
    plain = evaluate(model, chat_tokenizer(), requests[1:], data_dir=tmp_path)
    assert plain[0].tasks[0].value == passages.tasks[0].value


def test_a_template_that_writes_the_date_says_so_and_keeps_nothing_for_tomorrow() -> None:
    tokenizer = chat_tokenizer("Today is {{ strftime_now('%d %b %Y') }}." + CHATML)
    chat = chat_of(tokenizer, True)
    assert chat is not None
    assert chat.notes == ["the chat template writes today's date into every request"]
    assert "Today is " in str(chat.identity["sample"])


def test_examples_are_dropped_in_a_chat_too() -> None:
    definition = known_tasks()["mmlu_generated"]
    data = load_task_data(definition, "marketing", ("embedded",), None, 5)
    task = harness.build_task(definition, "marketing", 5, data.rows[:2], data.fewshot)
    chat = chat_of(chat_tokenizer(), True)
    (group, *_) = harness.build_requests(task, lambda text: text.count("<|im_start|>user") <= 3, chat)
    context = group[0].args[0]
    assert context.count("<|im_start|>user") == 3
    assert data.fewshot[1]["question"].strip() in context
    assert data.fewshot[2]["question"].strip() not in context
