"""The simulation of many machines: it agrees with what queueing theory says of one, and finds where entrances limit."""

from __future__ import annotations

import pytest

from serve.bench.simulated.fleet import EngineLoad, ServiceTimes, load_of, most_machines, simulate

MEASURED = ServiceTimes((EngineLoad(1, 1.0, 0.2), EngineLoad(4, 3.0, 0.25), EngineLoad(8, 4.0, 0.5)), 0.01, 50.0)


def test_between_what_was_measured_figures_lie_on_straight_lines() -> None:
    assert load_of(MEASURED.engine, 2.5).answers_per_s == pytest.approx(2.0)
    assert load_of(MEASURED.engine, 6).first_share == pytest.approx(0.375)
    assert load_of(MEASURED.engine, 100).answers_per_s == 4.0
    assert load_of(MEASURED.engine, 1).answers_per_s == 1.0


def test_one_machine_gives_what_was_measured_on_it() -> None:
    """Little's law: 8 clients that are always in the engine are answered 4 times a second, after 2 seconds each."""
    quick = ServiceTimes(MEASURED.engine, 1e-6, 50.0)
    load = simulate(quick, 1, 8)
    assert load.tokens_per_s == pytest.approx(200.0, rel=0.02)
    assert load.answer_p95_s == pytest.approx(2.0, rel=0.1)
    assert load.ttft_p95_s == pytest.approx(1.0, rel=0.15)


def test_two_machines_share_their_clients_and_each_keeps_its_adapter() -> None:
    quick = ServiceTimes(MEASURED.engine, 1e-6, 50.0)
    assert simulate(quick, 2, 8).tokens_per_s == pytest.approx(2 * 200.0, rel=0.03)
    same = tuple(EngineLoad(row.clients, 1.5 * row.answers_per_s, row.first_share) for row in MEASURED.engine)
    apart = ServiceTimes(MEASURED.engine, 1e-6, 50.0, same)
    assert simulate(apart, 2, 8).tokens_per_s == pytest.approx(2 * 300.0, rel=0.03)
    assert simulate(apart, 1, 8).tokens_per_s == pytest.approx(200.0, rel=0.02)  # one has all adapters
    assert most_machines(ServiceTimes(MEASURED.engine, 0.01, 50.0, same), 8, 1) == pytest.approx(100 / 6)


def test_many_machines_do_many_times_the_work_until_the_entrance_is_busy() -> None:
    ten, hundred = simulate(MEASURED, 10, 8, entrances=1), simulate(MEASURED, 100, 8, entrances=1)
    assert ten.tokens_per_s == pytest.approx(10 * 200, rel=0.15) and ten.entrance_busy < 0.6
    # An entrance answers 100 requests a second at most, whatever is behind it.
    assert most_machines(MEASURED, 8, 1) == pytest.approx(25.0)
    assert hundred.tokens_per_s == pytest.approx(100 * 50, rel=0.05) and hundred.entrance_busy > 0.95
    assert hundred.ttft_p95_s > 3 * ten.ttft_p95_s
    wide = simulate(MEASURED, 100, 8, entrances=8)
    assert wide.tokens_per_s == pytest.approx(100 * 200, rel=0.15) and wide.entrance_busy < 0.6
