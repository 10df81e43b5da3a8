"""Which parts of an index become one when a new part is added. It knows nothing of files.

A part takes in the one before it while that has less than twice as many chunks, as in a log-structured merge tree
(O'Neil, Cheng, Gawlick & O'Neil 1996): a chunk is written anew some log2(n) times in all, an index of n chunks has no
more than some log2(n) parts, and a large part is not touched by an edit of a page.
"""

from __future__ import annotations

from collections.abc import Mapping


def groups_of(parts: Mapping[str, tuple[int, int]], added: int) -> list[list[str]]:
    """The next generation's parts, each as the names of those that it is made of; "" is what is added.

    parts: (chunks, chunks that still count) of each, in order. A part of which most chunks do not count any more is
    written anew alone, which a group of one name that is in need of it means as well.
    """
    alive = [(name, counts) for name, (_, counts) in parts.items() if counts]
    groups = [[name] for name, _ in alive]
    if not added:
        return groups
    last = [""]
    size = added
    while groups and alive[-1][1] < 2 * size:
        size += alive.pop()[1]
        last = [*groups.pop(), *last]
    return [*groups, last]


def is_worn(rows: int, counts: int) -> bool:
    """Whether so few of a part's chunks still count that it is to be written anew."""
    return counts * 2 < rows
