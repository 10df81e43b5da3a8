"""Which letters above ASCII the languages of Europe write, to tell tables apart that have letters at the same places.

Windows-1252 and Windows-1250 both make letters of nearly every byte: Hungarian read by the wrong one is hûtõ instead
of hűtő. But no Western language has õ and û and ü together, and Hungarian has ő, ű and ü. It knows nothing of bytes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

# Each language's letters from the most frequent to the rarest, as counted in the translations of common programs.
# German, French, Spanish, Italian, Portuguese, Dutch, Swedish, Danish, Norwegian, Finnish, Catalan, Icelandic,
# Estonian, Irish, Albanian.
_WESTERN = (
    "üäößé", "éèàêôîçâûùœïëáí", "óáíúéñü", "èàòéùìáíç", "ãçáíéóúõêâàôü", "ëéïáíóäöüèê", "äöåéáà", "æøåéäö", "åøæéòôö",
    "äöåšž", "óàéíèòçúïü", "ðíáóúýæöþé", "äõüöšž", "áíéúó", "ëç",
)  # fmt: skip
# Polish, Czech, Slovak, Hungarian, Slovene and Croatian, Romanian in its old and new spelling.
_CENTRAL = ("łżęąśóćńź", "íářčéýžěšůúóňťď", "áčíýéťúžšľóňôäĺďŕ", "áéíóöőüúű", "čšžćđ", "ăţşîâ", "ățșîâ")
_TURKISH = ("ıçşüğöâîûİ",)
_BALTIC = ("šųėžįąčūę", "āēīšļūņžķģč", "äõüöšž")
_FREQUENT, _RARER, _OUTSIDE = 3, 0.4, 6.0  # letters that cost nothing; bits for each rank behind; of another language
_OTHER_LANGUAGE = 8.0  # bits for a line that is in another language than most

Alphabets = Sequence[Mapping[str, float]]


def _costs(letters: str) -> Mapping[str, float]:
    costs = {letter: max(0.0, _RARER * (rank - _FREQUENT)) for rank, letter in enumerate(letters)}
    return {**{letter.upper(): bits for letter, bits in costs.items() if len(letter.upper()) == 1}, **costs}


WESTERN, CENTRAL, TURKISH, BALTIC = (
    tuple(map(_costs, languages)) for languages in (_WESTERN, _CENTRAL, _TURKISH, _BALTIC)
)
# Estonian was never written in the tables of DOS and the Macintosh, whose õ is the ä of Windows.
DOS = tuple(known for known in WESTERN if not ("õ" in known and "ä" in known))


def strangeness(text: str, alphabets: Alphabets) -> float:
    """Bits for letters above ASCII that hardly stand beside each other in any of these languages.

    Most lines are in one of them, the others in one each.
    """
    lines = [bits for line in text.splitlines() if not line.isascii() and (bits := _of_line(line, alphabets))]
    if not lines:
        return 0.0
    most = min(range(len(alphabets)), key=lambda language: sum(bits[language] for bits in lines))
    return sum(min(bits[most], min(bits) + _OTHER_LANGUAGE) for bits in lines)


def _of_line(line: str, alphabets: Alphabets) -> list[float]:
    letters = Counter(char for char in line if char > "\x7f" and char.isalpha() and char not in "ªºµ")
    bits = [sum(count * known.get(char, _OUTSIDE) for char, count in letters.items()) for known in alphabets]
    # Portuguese has its õ before e alone.
    lone = letters["õ"] + letters["Õ"] - line.count("õe") - line.count("ÕE")
    return [one + lone * (_OUTSIDE - known["õ"]) if "ã" in known and lone else one
            for one, known in zip(bits, alphabets, strict=True)]  # fmt: skip
