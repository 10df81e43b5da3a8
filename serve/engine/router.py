"""Which adapter a conversation goes to, and why: by name, or by the language of what the user writes.

Pure functions over adapters' names and languages. It knows nothing of files, of the engine or of HTTP.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from slm.errors import UnknownNameError
from slm.joints import Message
from slm.text.language import Guess, detect, is_name_only

# Below this share the text is mixed, and what was spoken before decides.
_SURE = 0.6
_LATIN_WORD = re.compile(r"[A-Za-z]+")


@dataclass(frozen=True)
class Route:
    """The adapter's name (None: the base), the reason in words, and the language that was found (or None)."""

    adapter: str | None
    reason: str
    language: str | None = None


def route(
    wanted: str | None,
    messages: Sequence[Message],
    adapters: Mapping[str, str | None],
    *,
    base: str = "base",
    default: str | None = None,
) -> Route:
    """Choose an adapter for a conversation.

    wanted: None, "base" or the base's name; an adapter's name; or "auto". adapters: name -> language or None,
    in order of preference. default: the adapter for undecided text (None: the base).
    Raises UnknownNameError with the known names; nothing falls back silently.
    """
    if wanted is None or wanted in ("base", base):
        return Route(None, "the base was named" if wanted else "no adapter was asked for")
    if wanted != "auto":
        if wanted not in adapters:
            raise UnknownNameError("model or adapter", wanted, {"auto", "base", base, *adapters})
        return Route(wanted, "named in the request")
    if not adapters:
        return Route(None, "no adapter is loaded")
    return by_language([m["content"] for m in messages if m["role"] == "user"], adapters, default=default)


def by_language(texts: Sequence[str], adapters: Mapping[str, str | None], *, default: str | None = None) -> Route:
    """Route by the last of the user's texts; when it does not decide, by the earlier ones, latest first."""
    speakers: dict[str, str] = {}
    for name, language in adapters.items():
        if language:
            speakers.setdefault(language, name)
    fallback = f"default '{default}'" if default else "the base"
    if not speakers:
        return Route(default, f"no adapter says which language it is for; {fallback}")
    among = {"en", "ja", *speakers}  # so that text in a language without an adapter is recognised as such
    weak: Guess | None = None
    for age, text in enumerate(reversed(texts)):
        guess = detect(text, among)
        if is_name_only(text) or (guess.language is None and guess.confidence == 0.0):
            continue
        if guess.confidence < _SURE or _is_scrap(text):
            weak = weak or guess
            continue
        return _answer(guess, speakers, default, fallback, earlier=age > 0)
    if weak is not None:
        return _answer(weak, speakers, default, fallback, earlier=False)
    return Route(default, f"no text to judge the language by; {fallback}")


def _is_scrap(text: str) -> bool:
    """One Latin word ('OK', a file's name) is written in every language: it follows the conversation."""
    return text.isascii() and len(_LATIN_WORD.findall(text)) < 2


def _answer(guess: Guess, speakers: Mapping[str, str], default: str | None, fallback: str, *, earlier: bool) -> Route:
    before = "as earlier in this conversation: " if earlier else ""
    if guess.language is not None and guess.language in speakers:
        return Route(speakers[guess.language], f"{before}{guess.reason}", guess.language)
    what = f"no adapter for '{guess.language}'" if guess.language else "no adapter for this language"
    return Route(default, f"{before}{guess.reason}; {what}, {fallback}", guess.language)
