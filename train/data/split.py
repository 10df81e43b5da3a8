"""Which sequences are held out to measure the loss on: a share of each language, and never what is also trained on.

It knows hashes of contents and languages, not texts.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from slm.errors import InputError
from slm.terminal.console import note


def held_out(keys: npt.NDArray[np.uint64], languages: npt.NDArray[np.str_], fraction: float) -> npt.NDArray[np.bool_]:
    """True for the sequences that are held out: of each language `fraction` of the different contents, at least one.

    keys: a hash of each sequence's content and of the seed; the smallest ones are held out, so that equal contents
    stay on one side and examples added later hardly change the choice. A language with a single content is trained on
    and not measured, which is noted. Raises InputError when no language has two.
    """
    chosen = np.zeros(len(keys), dtype=bool)
    single = []
    for lang in sorted(set(languages.tolist())):
        members = np.flatnonzero(languages == lang)
        contents = np.unique(keys[members])
        if len(contents) < 2:
            single.append(lang)
            continue
        count = min(len(contents) - 1, max(1, round(len(contents) * fraction)))
        chosen[members] = keys[members] <= contents[count - 1]
    if single:
        names = ", ".join(f"'{lang}'" for lang in single)
        if not chosen.any():
            raise InputError(
                f"the language {names} has only one example: nothing can be held out to measure the loss on",
                hint="Add examples, or name held-out data with --eval-data.",
            )
        note(f"the language {names} has only one example: it is trained on, and its loss is not measured")
    return chosen
