"""Which language a text is in. It knows nothing of adapters or models.

Scripts decide where they can (kana is Japanese, hangul is Korean); only among languages that share a
script is the statistical identifier py3langid asked.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

_SCRIPTS: dict[str, re.Pattern[str]] = {
    "kana": re.compile(r"[\u3041-\u30ff\u31f0-\u31ff\uff66-\uff9f]"),
    "han": re.compile(r"[\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003134f]"),
    "hangul": re.compile(r"[\u1100-\u11ff\uac00-\ud7af]"),
    "latin": re.compile(r"[A-Za-z\u00c0-\u024f]+"),
}
_NOT_PROSE = re.compile(r"```.*?```|`[^`]*`|https?://\S+|\S+@\S+", re.DOTALL)
# A Latin word weighs as much as this many kana or kanji (a Japanese word is about two characters).
_WORD_WEIGHT = 2.0


@dataclass(frozen=True)
class Guess:
    """A language code (ISO 639-1) or None for undecided, a confidence from 0 to 1, and the reason in words."""

    language: str | None
    confidence: float
    reason: str


@lru_cache(maxsize=8)
def _identifier(languages: tuple[str, ...]) -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_pickled_model(MODEL_FILE, norm_probs=True)
    identifier.set_languages(list(languages))
    return identifier


def detect(text: str, among: Collection[str] = ("en", "ja")) -> Guess:
    """Guess the language of `text` out of `among`. Code, URLs and addresses do not count as prose."""
    prose = _NOT_PROSE.sub(" ", text)
    kana, han, hangul = (len(_SCRIPTS[s].findall(prose)) for s in ("kana", "han", "hangul"))
    words = len(_SCRIPTS["latin"].findall(prose))
    # Kanji are Japanese beside kana, and where nobody asks for Chinese.
    han_language = "zh" if kana == 0 and "zh" in among else "ja"
    weights = {"latin": words * _WORD_WEIGHT, "ja": float(kana), "ko": float(hangul), "zh": 0.0}
    weights[han_language] += han
    total = sum(weights.values())
    if total == 0:
        return Guess(None, 0.0, "no letters to judge by")
    script, weight = max(weights.items(), key=lambda item: item[1])
    share = weight / total
    if script != "latin":
        if script in among:
            return Guess(script, share, f"{share:.0%} of the text is in {script} script")
        return Guess(None, share, f"the text looks like '{script}', which is not among {', '.join(sorted(among))}")
    latin = tuple(sorted(code for code in among if code not in ("ja", "zh", "ko")))
    if not latin:
        return Guess(None, share, f"Latin letters, and none of {', '.join(sorted(among))} is written so")
    if len(latin) == 1:
        return Guess(latin[0], share, f"{share:.0%} of the text is in Latin script")
    language, probability = _identifier(latin).classify(prose)
    return Guess(
        str(language),
        float(probability) * share,
        f"{share:.0%} Latin script, identified as '{language}' ({float(probability):.2f})",
    )
