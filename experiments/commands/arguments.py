"""What a command line says before typer reads it: options that take several words, and options that are said twice."""

from __future__ import annotations

from prunebench.models.errors import BadInput

SEVERAL = ("--set", "--protocol", "--plugin")
"""Options that take every word up to the next option: --protocol reading mmlu_5shot."""
REPEATABLE = (*SEVERAL, "--only", "--family")


def normalised(arguments: list[str]) -> list[str]:
    """The same command line with one word an option.

    Raises:
        BadInput: an option that takes one value is given two.
    """
    verb, *words = arguments
    result, seen = [verb], dict[str, str]()
    option, count = "", 0
    for place, word in enumerate(words):
        if word.startswith("--"):
            option, equals, value = word.partition("=")
            count = 0
            if not equals:
                value = words[place + 1] if place + 1 < len(words) and not words[place + 1].startswith("--") else ""
            if option not in REPEATABLE and seen.setdefault(option, value) != value:
                raise BadInput(f"{option} is given twice, as {seen[option]} and {value}; give it once.")
        else:
            count += 1
            if option in SEVERAL and count > 1 and verb != "conformance":
                result.append(option)
        result.append(word)
    return result
