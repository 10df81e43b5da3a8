"""The scheduling policy, the placement of prompts in the KV cache and its store: plain data, no model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serve.child import schedule
from serve.child.adapters import contents_of, key_of
from serve.child.cells import placement
from serve.child.cells.store import SMALLEST, PrefixStore
from serve.engine.supervisor import Blame

# --- tokens of a step -------------------------------------------------------------------------------------------


def test_a_step_serves_every_answer_then_the_oldest_prompt_a_little_and_the_shortest_most() -> None:
    work = [schedule.Work(0, 0, 1), schedule.Work(1, 900, 2), schedule.Work(2, 20, 3), schedule.Work(3, 0, 4)]
    assert schedule.plan_step(work, chunk=256) == {0: 1, 3: 1, 1: 64 + 172, 2: 20}
    crowded = [
        schedule.Work(0, 900, 1),
        schedule.Work(1, 300, 2),
        schedule.Work(2, 100, 3),
    ]  # 96 of the chunk's
    assert schedule.plan_step(crowded, chunk=128) == {0: 32, 2: 100}
    assert schedule.plan_step([schedule.Work(0, 500)], chunk=64) == {0: 64}
    assert schedule.plan_step([], chunk=64) == {}


@given(st.lists(st.integers(0, 2000), max_size=16).flatmap(st.permutations), st.integers(4, 512))
def test_a_step_is_hardly_larger_than_its_chunk_and_always_moves_on(items: list[int], chunk: int) -> None:
    work = [schedule.Work(slot, left, arrived=slot) for slot, left in enumerate(items)]
    plan = schedule.plan_step(work, chunk=chunk)
    left = {item.slot: item.prompt_left for item in work}
    assert all(plan[slot] == 1 for slot in left if left[slot] == 0)
    assert all(0 < tokens <= max(1, left[slot]) for slot, tokens in plan.items())
    prompts = {slot: tokens for slot, tokens in plan.items() if left[slot]}
    whole = sum(left.values())
    assert min(chunk, whole) <= sum(prompts.values()) <= min(chunk + schedule.REMAINDER, whole)
    waiting = [item for item in work if item.prompt_left]
    if waiting:
        assert min(waiting, key=lambda item: item.arrived).slot in prompts, "the one that waited longest moves on"


def test_a_chunk_takes_about_the_time_of_a_step() -> None:
    assert schedule.chunk_of(1300) == 130
    assert schedule.chunk_of(1000, schedule.CALM_STEP_S) == 400
    assert schedule.SMALLEST_CHUNK <= schedule.chunk_of(0) <= schedule.LARGEST_CHUNK
    assert (schedule.chunk_of(1), schedule.chunk_of(1e9)) == (schedule.SMALLEST_CHUNK, schedule.LARGEST_CHUNK)


# --- turns ------------------------------------------------------------------------------------------------------


def test_adapters_that_share_a_context_take_turns_of_a_quantum() -> None:
    rotation = schedule.Rotation(quantum=3)
    assert [rotation.next(["b", "a"]) for _ in range(9)] == list("aaabbbaaa")
    assert [rotation.next(["a"]) for _ in range(5)] == list("aaaaa")
    assert rotation.next(["a", "b"]) == "b", "one that was alone for long gives way at once"


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(1, 8), st.lists(st.sets(st.sampled_from("abcdef"), min_size=1), min_size=60, max_size=60))
def test_no_adapter_with_work_waits_for_more_than_everybodys_quantum(quantum: int, rounds: list[set[str]]) -> None:
    rotation = schedule.Rotation(quantum)
    always = [{"a", *others} for others in rounds]
    got = [rotation.next(keys) for keys in always]
    assert all(key in keys for key, keys in zip(got, always, strict=True))
    gaps = [at for at, key in enumerate(got) if key == "a"]
    assert gaps and max(b - a for a, b in zip([-1, *gaps], [*gaps, len(got)], strict=True)) <= 5 * quantum + 1


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 16), st.integers(1, 6), st.sampled_from([0.0, 0.3, 1.0]), st.randoms(use_true_random=False))
def test_cores_are_never_lent_twice_and_everybody_gets_some(
    total: int, lanes: int, wholes: float, random: object
) -> None:
    cores = schedule.Cores(total)
    running: dict[int, int] = {}
    served = dict.fromkeys(range(lanes), 0)
    for _ in range(40 * lanes):
        waiting = [lane for lane in range(lanes) if lane not in running]
        whole = {lane for lane in waiting if random.random() < wholes}  # type: ignore[attr-defined]
        for lane in waiting:
            cores.want(lane, whole=lane in whole)
        for lane in waiting * 2:
            if given_now := cores.grant(lane):
                running[lane] = given_now
                served[lane] += 1
                assert given_now == total or lane not in whole
        assert 0 < sum(running.values()) <= total
        assert sum(running.values()) == total or len(running) == lanes or whole - set(running), (
            "no core idles while somebody could use it, unless one waits for all"
        )
        done = random.choice(sorted(running))  # type: ignore[attr-defined]
        cores.release(done)
        del running[done]
    assert min(served.values()) > 0


def test_a_lone_context_has_all_cores_and_shares_as_soon_as_another_wants_some() -> None:
    cores = schedule.Cores(4)
    cores.want(0)
    assert cores.grant(0) == 4
    cores.want(1)
    assert cores.grant(1) == 0, "the step under way keeps its cores"
    cores.release(0)
    cores.want(0)
    assert (cores.grant(1), cores.grant(0)) == (2, 2)
    cores.want(0)
    assert cores.grant(0) == 0, "one step at a time"


def test_who_wants_all_cores_gets_them_after_the_steps_under_way_and_then_the_others_come_first() -> None:
    cores = schedule.Cores(2)
    for lane in (0, 1):
        cores.want(lane)
    assert (cores.grant(0), cores.grant(1)) == (1, 1)
    cores.want(2, whole=True)
    cores.release(0)
    cores.want(0)
    assert (cores.grant(2), cores.grant(0)) == (0, 0), "it waits for both, and nobody passes it"
    cores.release(1)
    cores.want(1)
    assert (cores.grant(2), cores.grant(0)) == (2, 0)
    cores.release(2)
    cores.want(2, whole=True)
    assert (cores.grant(2), cores.grant(0), cores.grant(1)) == (0, 1, 1)


def test_only_a_lone_prompt_is_read_on_all_cores() -> None:
    assert schedule.reads_alone(1, 1, 0)
    assert not schedule.reads_alone(1, 1, 1), "two read side by side"
    assert not schedule.reads_alone(2, 1, 0) and not schedule.reads_alone(1, 0, 0)


def test_a_prompt_leaves_no_few_tokens_for_a_step_of_their_own() -> None:
    assert schedule.plan_step([schedule.Work(0, 35)], chunk=32) == {0: 35}
    assert schedule.plan_step([schedule.Work(0, 60)], chunk=32) == {0: 32}


def home(key: str, *lanes: schedule.LaneLoad, parallel: int = 8, cores: int = 2) -> int | None:
    return schedule.home_of(key, lanes, parallel=parallel, cores=cores)


def test_a_lone_adapter_spreads_over_the_cores_and_no_further() -> None:
    a, empty, closed = schedule.LaneLoad({"a": 2}), schedule.LaneLoad({}), schedule.LaneLoad({}, opened=False)
    assert home("a", empty, closed) == 0
    assert home("a", a, closed, empty) == 2, "an open one before one that has to be opened"
    assert home("a", a, schedule.LaneLoad({"a": 1}), empty) == 1
    assert home("a", a, empty, cores=1) == 0
    assert home("a", a, empty, parallel=2) is None
    assert home("a", schedule.LaneLoad({"a": 1}, room=False), empty) == 1
    assert home("a", schedule.LaneLoad({"a": 1}, room=False)) is None


def test_several_adapters_get_a_context_each_then_share_the_least_mixed() -> None:
    a, b, empty = schedule.LaneLoad({"a": 4}), schedule.LaneLoad({"b": 1}), schedule.LaneLoad({})
    assert home("b", a, empty) == 1
    assert home("a", a, b, empty) == 0, "with two adapters on two cores one context each is the share"
    assert home("a", schedule.LaneLoad({"a": 1}), a, b) == 1, "the emptier one is to run dry"
    assert home("c", a, b, empty) == 2
    assert home("c", a, b) == 1
    assert home("c", schedule.LaneLoad({"a": 1, "b": 1}), a) == 1


def test_a_request_waits_to_spread_while_another_adapter_may_come_back() -> None:
    """Else the first of two bursts takes both cores, and the second one's requests make a third context."""
    lanes = [schedule.LaneLoad({"a": 2}), schedule.LaneLoad({})]
    assert schedule.home_of("a", lanes, parallel=8, cores=2, wanted={"a"}) == 1
    assert schedule.home_of("a", lanes, parallel=8, cores=2, wanted={"a", "b"}) is None
    assert schedule.home_of("b", lanes, parallel=8, cores=2, wanted={"a", "b"}) == 1
    assert schedule.home_of("a", lanes, parallel=8, cores=4, wanted={"a", "b"}) == 1, "its share is two contexts"
    both = [schedule.LaneLoad({"a": 2}), schedule.LaneLoad({"b": 1}), schedule.LaneLoad({})]
    assert schedule.home_of("a", both, parallel=8, cores=2, wanted={"a", "b"}) == 0


def test_a_long_beginning_decides_where_a_request_goes() -> None:
    holds = schedule.LaneLoad({"b": 1}, shared=1500)
    assert home("a", schedule.LaneLoad({}), holds) == 1
    assert home("a", schedule.LaneLoad({}), schedule.LaneLoad({"b": 1}, shared=schedule.LONG_BEGINNING)) == 0
    assert home("a", schedule.LaneLoad({}), schedule.LaneLoad({}, shared=30)) == 1
    assert home("a", schedule.LaneLoad({}), schedule.LaneLoad({"b": 1}, shared=1500, room=False)) == 0


def test_a_set_of_adapters_has_one_key_in_any_order() -> None:
    assert key_of([("x", 1.0), ("y", 0.5)]) == key_of([("y", 0.5), ("x", 1.0)]) != key_of([("x", 0.5), ("y", 1.0)])
    assert contents_of(key_of([("y", 0.5), ("x", 1.0)])) == [("x", 1.0), ("y", 0.5)]
    assert (key_of([]), contents_of("")) == ("", [])


# --- cells ------------------------------------------------------------------------------------------------------


def view(
    index: int, tokens: list[int], *, key: str = "k", busy: bool = False, reserved: int = 0, used: int = 0
) -> placement.SlotView:
    return placement.SlotView(index, key, tokens, busy, reserved, used)


def test_a_request_is_placed_where_its_longest_prefix_is() -> None:
    slots = [view(0, [1, 2, 3, 4], used=3), view(1, [1, 2, 9], used=2), view(2, [])]
    assert placement.place(slots, "k", [1, 2, 3, 4, 5], reserve=10, cells=100) == placement.Placement(0, None, 4, (1,))
    long = [view(0, list(range(50))), view(1, [])]
    turn = [0, 1, 2, 77]
    assert placement.place(long, "k", turn, reserve=10, cells=100) == placement.Placement(1, 0, 3, (0,))
    assert placement.place(long, "k", turn, reserve=10, cells=100, can_copy=False) == placement.Placement(
        0, None, 3, ()
    )
    running = [view(0, [1, 2, 3], busy=True, reserved=20), view(1, [])]
    assert placement.place(running, "k", [1, 2, 3], reserve=10, cells=100) == placement.Placement(1, 0, 2, ())


def test_cells_of_other_adapters_are_never_shared() -> None:
    slots = [view(0, [1, 2, 3, 4], key="other", used=3), view(1, [1, 2], used=2), view(2, [])]
    placed = placement.place(slots, "k", [1, 2, 3, 4, 5], reserve=10, cells=100)
    assert placed == placement.Placement(1, None, 2, (0,))
    assert placement.place(slots[:1], "k", [1, 2, 3, 4, 5], reserve=10, cells=100) == placement.Placement(
        0, None, 0, ()
    )


def test_idle_sequences_leave_and_running_ones_keep_their_cells() -> None:
    slots = [view(0, [9] * 40, used=1), view(1, [8] * 40, busy=True, reserved=50), view(2, [])]
    assert placement.place(slots, "k", [1, 2], reserve=50, cells=100) == placement.Placement(2, None, 0, (0,))
    busy = [view(0, [9] * 40, busy=True, reserved=60), view(1, [])]
    assert placement.place(busy, "k", [1, 2], reserve=41, cells=100) is None
    assert placement.place(busy, "k", [1, 2], reserve=40, cells=100) == placement.Placement(1, None, 0, ())


@given(
    st.lists(
        st.tuples(st.sampled_from("kl"), st.lists(st.integers(0, 2), max_size=12), st.booleans()),
        min_size=1, max_size=6,
    ),
    st.lists(st.integers(0, 2), min_size=1, max_size=12),
    st.integers(1, 40),
)  # fmt: skip
def test_a_placement_keeps_only_equal_tokens_of_the_same_key_and_fits(
    slots: list[tuple[str, list[int], bool]], prompt: list[int], reserve: int
) -> None:
    views = [
        view(index, tokens, key=key, busy=busy, reserved=len(tokens) + 2 if busy else 0, used=index)
        for index, (key, tokens, busy) in enumerate(slots)
    ]
    placed = placement.place(views, "k", prompt, reserve=reserve, cells=60)
    if placed is None:
        return
    source = views[placed.slot if placed.source is None else placed.source]
    assert placed.keep < len(prompt) and not views[placed.slot].busy
    assert placed.keep == 0 or (source.key == "k" and source.tokens[: placed.keep] == prompt[: placed.keep])
    kept = [v for v in views if not v.busy and v.index != placed.slot and v.index not in placed.evict]
    assert sum(len(v.tokens) for v in kept) + sum(v.reserved for v in views) + reserve <= 60


# --- the store --------------------------------------------------------------------------------------------------

LONG = list(range(SMALLEST + 20))


def test_the_store_finds_the_longest_beginning_of_the_same_key_only() -> None:
    store = PrefixStore("m", budget=1000)
    store.put("a", LONG[:-10], b"short")
    store.put("a", LONG, b"long!")
    store.put("b", LONG, b"other")
    entry = store.take("a", [*LONG, 7])
    assert entry is not None and entry.state == b"long!" and list(entry.tokens) == LONG
    assert store.longest("a", [*LONG[:300], 9999]) == min(300, len(LONG)) and store.longest("c", LONG) == 0
    assert store.take("c", LONG) is None
    assert store.used == 10, "the shorter one held nothing that the longer one does not hold"
    assert not store.wants("a", LONG[:-1]) and store.wants("a", [*LONG, 1]) and not store.wants("a", LONG[:10])


def test_the_least_recently_used_leaves_the_store_first() -> None:
    store = PrefixStore("m", budget=25)
    for name in "abc":
        store.put(name, LONG, name.encode() * 10)
        if name == "b":
            store.take("a", LONG)
    assert [store.longest(name, LONG) > 0 for name in "abc"] == [True, False, True] and store.used == 20
    store.put("huge", LONG, b"x" * 26)
    assert store.longest("huge", LONG) == 0 and store.used == 20


def test_the_disk_keeps_what_leaves_memory_and_a_later_process_finds_it(tmp_path: Path) -> None:
    store = PrefixStore("model-1", budget=20, folder=tmp_path)
    store.put("a", LONG, b"a" * 15)
    store.put("b", LONG, b"b" * 15)
    again = PrefixStore("model-1", budget=20, folder=tmp_path)
    entry = again.take("a", LONG)
    assert entry is not None and entry.state == b"a" * 15 and list(entry.tokens) == LONG
    assert PrefixStore("model-2", budget=20, folder=tmp_path).take("a", LONG) is None, "cells of another model"
    [file] = tmp_path.glob("*.kv")
    assert file.stat().st_mode & 0o077 == 0, "a conversation is nobody else's business"


@pytest.mark.parametrize("harm", ["cut", "flip", "junk", "gone"])
def test_a_damaged_file_is_never_given_to_llama_cpp(tmp_path: Path, harm: str) -> None:
    store = PrefixStore("m", budget=20, folder=tmp_path)
    store.put("a", LONG, b"a" * 15)
    store.put("b", LONG, b"b" * 15)
    [file] = tmp_path.glob("*.kv")
    raw = file.read_bytes()
    if harm == "gone":
        file.unlink()
    else:
        file.write_bytes({"cut": raw[:-3], "flip": raw[:-1] + b"\0", "junk": json.dumps([1]).encode()}[harm])
    assert store.take("a", LONG) is None and store.take("a", LONG) is None
    assert PrefixStore("m", budget=20, folder=tmp_path).take("a", LONG) is None


def test_the_disk_has_a_budget_too(tmp_path: Path) -> None:
    one = len(LONG) * 8 + 200
    store = PrefixStore("m", budget=10, folder=tmp_path, disk_budget=3 * one)
    for number in range(12):
        store.put(f"key{number}", LONG, bytes([number]) * 10)
    assert 0 < sum(file.stat().st_size for file in tmp_path.glob("*.kv")) <= 3 * one
    assert store.longest("key0", LONG) == 0 and store.longest("key10", LONG) > 0


# --- blame ------------------------------------------------------------------------------------------------------


def test_who_was_there_at_two_deaths_is_refused_unless_it_was_answered_in_between() -> None:
    now = [0.0]
    blame = Blame(lambda: now[0])
    blame.died({"killer", "neighbour"})
    assert not blame.refuses("killer")
    blame.succeeded("neighbour")
    blame.died({"killer", "neighbour"})
    assert blame.refuses("killer") and not blame.refuses("neighbour") and not blame.refuses("stranger")
    now[0] = 601.0
    assert not blame.refuses("killer")
