"""Numbers to text, once: the page, the CSV, the Markdown and the LaTeX all show these strings."""

from __future__ import annotations

import math
import unicodedata
from typing import Literal

Kind = Literal["percent", "perplexity", "number"]
MISSING = "–"
NAME_LIMIT = 60

_BIDI = set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f\u061c")


def kind_of(metric: str, higher_is_better: bool) -> Kind:
    """How a metric is shown: fractions as percent, perplexities with three digits, the rest as they are."""
    name = metric.lower()
    if "perplexity" in name or "ppl" in name:
        return "perplexity"
    if not higher_is_better or "bits" in name or "loglik" in name or "nll" in name:
        return "number"
    return "percent"


def score(value: float | None, kind: Kind) -> str:
    if value is None or math.isnan(value):
        return MISSING
    if kind == "percent":
        return fixed(100 * value, 1)
    return significant(value, 4 if kind == "perplexity" else 3)


def score_unit(kind: Kind) -> str:
    return {"percent": "%", "perplexity": "ppl", "number": ""}[kind]


def fixed(value: float | None, digits: int) -> str:
    if value is None or math.isnan(value):
        return MISSING
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    text = f"{value:.{digits}f}"
    if float(text) == 0:
        text = text.lstrip("-")
    return text.replace("-", "−")


def significant(value: float | None, digits: int) -> str:
    """`digits` significant digits, thousands kept whole: 7.914, 42.61, 1284, 1.2e+06."""
    if value is None or math.isnan(value):
        return MISSING
    if math.isinf(value) or value == 0:
        return fixed(value, 0)
    exponent = math.floor(math.log10(abs(value)))
    if exponent >= 6:
        return f"{value:.1e}".replace("-", "−")
    return fixed(value, max(0, digits - 1 - exponent))


def ratio(log: float) -> str:
    """A ratio from its logarithm, three digits; beyond what a float holds it is infinite."""
    return significant(math.exp(log) if log < 700 else math.inf, 3)


def whole(value: float) -> str:
    """A count of things to two significant digits: 1,400."""
    return f"{float(f'{value:.2g}'):,.0f}"


def signed(value: float | None, digits: int) -> str:
    text = fixed(value, digits)
    return text if text == MISSING or text.startswith("−") or (value == 0) else "+" + text


def percent(value: float | None, digits: int = 0) -> str:
    return MISSING if value is None or math.isnan(value) else fixed(100 * value, digits) + " %"


def sparsity(value: float | None) -> str:
    """A target: '20 %'; 'dense' and 'missing' are said by whoever knows which of the two None is."""
    if value is None or math.isnan(value):
        return "no sparsity"
    text = fixed(100 * value, 1)
    return f"{text.rstrip('0').rstrip('.') if '.' in text else text} %"


def count(value: float | None) -> str:
    """Parameters and MACs: 134.5M, 5.42B."""
    return _scaled(value, ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")))


def bytes_(value: float | None) -> str:
    return _scaled(value, ((1e12, " TB"), (1e9, " GB"), (1e6, " MB"), (1e3, " kB")), " B")


def seconds(value: float | None) -> str:
    if value is None or math.isnan(value):
        return MISSING
    if value < 1:
        return fixed(value, 2) + " s"
    if value < 100:
        return fixed(value, 1) + " s"
    if value < 5400:
        return fixed(value / 60, 1) + " min"
    return fixed(value / 3600, 1) + " h"


def p_value(value: float | None) -> str:
    if value is None or math.isnan(value):
        return MISSING
    return "<0.001" if value < 0.001 else fixed(value, 3)


def _scaled(value: float | None, steps: tuple[tuple[float, str], ...], plain: str = "") -> str:
    if value is None or math.isnan(value):
        return MISSING
    for size, unit in steps:
        if abs(value) >= size:
            scaled = value / size
            return fixed(scaled, 2 if scaled < 10 else 1 if scaled < 1000 else 0) + unit
    return fixed(value, 0) + plain


def clean(text: str) -> str:
    """Text of a record made safe to show in one line: no control or direction characters, no lone surrogates."""
    if text.isascii() and text.isprintable():
        return text
    kept = []
    for char in text:
        if char in "\t\n\r":
            kept.append(" ")
        elif char in _BIDI or unicodedata.category(char) in ("Cc", "Cs"):
            kept.append("\ufffd")
        else:
            kept.append(char)
    return "".join(kept)


def short(text: str, limit: int = NAME_LIMIT) -> str:
    text = clean(text)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def model_label(name: str) -> str:
    """`embedded:smollm2-135m-instruct` and `org/name` and a folder path, by what distinguishes them."""
    text = name.rstrip("/").rsplit("/", 1)[-1] if "://" not in name else name
    return short(text.removeprefix("embedded:") or name)


_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "−": r"$-$",
    "∞": r"$\infty$",
    "–": "--",
    "<": r"$<$",
    ">": r"$>$",
    "…": r"\ldots{}",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "·": r"$\cdot$",
    "×": r"$\times$",
    "≥": r"$\geq$",
    "—": "---",
    "’": "'",
    "\ufffd": "?",
}


def latex(text: str) -> str:
    """Text for LaTeX; what pdflatex has no letter for (beyond Latin) becomes '?'."""
    return "".join(_LATEX.get(char, char if ord(char) < 0x180 else "?") for char in clean(text))


def markdown(text: str) -> str:
    escaped = "".join("\\" + c if c in "\\`*_[]|<>" else c for c in text)
    return escaped.replace("&", "&amp;")
