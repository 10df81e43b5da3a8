"""The command `slm bench cluster`: how the figures of the server on Ray are shown, not how they are taken."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from slm.joints import Joints, pass_joints
from slm.terminal.arguments import NAMED_FILE, FiniteRange, one_of_each, typed
from slm.terminal.console import emit_json, out


@click.command("cluster", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("model", default="smollm2-135m-instruct")
@click.option("--adapter", "adapters", type=NAMED_FILE, multiple=True,
              help="LoRA adapters (GGUF). Default: two random ones of rank 16.")  # fmt: skip
@click.option(
    "--clients", type=click.IntRange(1, 64), default=8, show_default=True, help="Requests at once, each machine."
)
@click.option("--tokens", type=click.IntRange(2), default=64, show_default=True, help="Tokens of an answer.")
@click.option("--seconds", type=FiniteRange(0, min_open=True), default=20.0, show_default=True,
              help="How long each run lasts.")  # fmt: skip
@click.option("--cores", type=click.IntRange(1, 512), default=2, show_default=True, help="Of this machine.")
@click.option("--simulate", "times", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE",
              help="Measure nothing: 1 to 1,000 machines by the times in what --json printed before.")  # fmt: skip
@click.option("--ingresses", type=click.IntRange(1, 1000), multiple=True, default=(1, 10), show_default=True,
              help="Of the simulation: processes that take requests; may be given several times.")  # fmt: skip
@click.option("--kills", type=click.IntRange(1), metavar="N",
              help="Measure instead what becomes of requests while N times one of two replicas is killed.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@pass_joints
def bench_cluster(
    joints: Joints, model: str, adapters: tuple[tuple[str, Path], ...], clients: int, tokens: int, seconds: float,
    cores: int, times: Path | None, ingresses: tuple[int, ...], kills: int | None, as_json: bool,
) -> None:  # fmt: skip
    """The server on Ray beside `slm serve` on the same cores, and what many machines would do.

    One and two replicas run here, each beside its simulation; what they measure is what --simulate is built on.

    \b
    Example:
      slm bench cluster gemma-3-270m --json > times.json
      slm bench cluster --simulate times.json --ingresses 1 --ingresses 20
      slm bench cluster gemma-3-270m --kills 10
    """
    _refuse_useless(simulated=times is not None, kills=kills is not None)
    from serve.bench.simulated.machines import ClusterPlan, bench_cluster_runs, simulated, times_of_file

    if times is not None:
        result = simulated(times_of_file(times), clients, ingresses)
        _print(result, as_json, _show_fleet)
        return
    from slm.native.ray_cluster import check_address

    check_address("ray")
    plan = ClusterPlan(clients, tokens, seconds, cores)
    if kills:
        from serve.bench.simulated.kills import bench_kills

        _print(bench_kills(joints.gguf_of(model), one_of_each(adapters), plan, kills), as_json, _show_kills)
        return
    _print(bench_cluster_runs(joints.gguf_of(model), one_of_each(adapters), plan), as_json, _show_runs)


def _refuse_useless(*, simulated: bool, kills: bool) -> None:
    """Raise UsageError for an option on the command line that would do nothing."""
    if simulated and kills:
        raise click.UsageError("--simulate measures nothing; --kills does. Give one of them.")
    useless = {"model", "adapters", "tokens", "seconds", "cores"} if simulated else {"ingresses"}
    useless |= {"seconds"} if kills else set()
    for name, option in typed().items():
        if name in useless:
            does = "--simulate" if simulated else "--kills" if name == "seconds" else "a measurement"
            raise click.UsageError(f"{'MODEL' if name == 'model' else option} does nothing for {does}.")


def _print(result: dict[str, Any], as_json: bool, show: Any) -> None:
    if as_json:
        emit_json(result)
    else:
        show(result)


def _table(rows: list[list[str]], *headings: str) -> None:
    from rich.table import Table

    table = Table(*headings)
    for row in rows:
        table.add_row(*row)
    out().print(table)


def _show_runs(result: dict[str, Any]) -> None:
    rows = [
        [run["name"], str(run["clients"]), f"{run['tokens_per_s']:.0f}", f"{run['ttft_p50_s'] * 1000:.0f}",
         f"{run['ttft_p95_s'] * 1000:.0f}", f"{run['entrance_s'] * 1000:.0f}", str(run["failed"])]
        for run in result["runs"]
    ]  # fmt: skip
    _table(rows, "server", "clients", "tokens/s", "TTFT p50 ms", "p95 ms", "entrance ms/answer", "failed")
    from serve.bench.simulated.machines import GOALS

    costs = result["costs"]
    click.echo(
        f"one replica on Ray: {costs['throughput']:.2f} of slm serve's throughput (goal {GOALS['throughput']}), "
        f"time to first token {costs['ttft_more_ms']:+.0f} ms (goal {GOALS['ttft_more_ms']:.0f} at most)"
    )
    click.echo(f"two replicas of half the cores: {costs['halves']:.2f} of one (goal {GOALS['halves']:.0f})")
    checks = [
        [str(c["machines"]), str(c["clients"]), f"{c['measured_tokens_per_s']:.0f}",
         f"{c['simulated_tokens_per_s']:.0f}", f"{c['measured_answer_p95_s']:.2f}",
         f"{c['simulated_answer_p95_s']:.2f}"]
        for c in result["checks"]
    ]  # fmt: skip
    _table(checks, "replicas", "clients", "tokens/s", "simulated", "answer p95 s", "simulated")


def _show_kills(result: dict[str, Any]) -> None:
    click.echo(
        f"{result['kills']} kills: {result['requests']:,} requests, {result['answered']:,} answered, "
        f"{result['clear_errors']:,} ended with a clear error, {sum(result['others'].values()):,} otherwise"
    )
    for what, count in result["others"].items():
        click.echo(f"  {count} x {what}")
    each = ", ".join(f"{seconds:.1f}" for seconds in result["back_s"])
    click.echo(f"two replicas again after {each} s; the goal is {result['goal_s']:.0f} s at most")


def _show_fleet(result: dict[str, Any]) -> None:
    rows = [
        [f"{load['machines']:,}", str(load["entrances"]), f"{load['tokens_per_s']:,.0f}", f"{load['ttft_p95_s']:.2f}",
         f"{load['answer_p95_s']:.2f}", f"{load['entrance_busy']:.0%}"]
        for load in result["loads"]
    ]  # fmt: skip
    _table(rows, "machines", "ingresses", "tokens/s", "TTFT p95 s", "answer p95 s", "ingresses busy")
    for count, machines in result["most_machines"].items():
        click.echo(f"{count} ingress(es) are the limit from {machines:,.0f} machines on")
