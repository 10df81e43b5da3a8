"""The commands `slm bench engine`, `serve`, `batch` and `start`: how figures are shown, not how they are taken."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from serve.cli.options import group_of, with_context, with_threads
from slm.errors import InputError
from slm.joints import Joints, pass_joints
from slm.terminal.arguments import NAMED_FILE, FiniteRange, one_of_each, typed
from slm.terminal.console import emit_json, out

# What every bench of a loaded server has.
_with_runs = group_of(
    click.option("--rounds", type=click.IntRange(1), default=3, show_default=True, help="Medians over so many."),
    click.option(
        "--context", type=click.IntRange(64, 1 << 20), default=4096, show_default=True, help="Tokens a request."
    ),
    click.option("--threads", type=click.IntRange(0, 512), default=0, help="0: one for each physical core."),
    click.option("--json", "as_json", is_flag=True, help="Print the result as JSON."),
)


@click.command("serve", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("model", default="smollm2-135m-instruct")
@click.option("--adapter", "adapters", type=NAMED_FILE, multiple=True,
              help="Two or more LoRA adapters (GGUF). Default: random ones of rank 16.")  # fmt: skip
@click.option("--peer", "peers", multiple=True, type=click.Choice(["llama-server", "llama-cpp-python", "all"]),
              default=("all",), show_default=True, help="all: those that are installed.")  # fmt: skip
@click.option("--llama-server", "binary", type=click.Path(path_type=Path), help="Its program. Default: on PATH.")
@click.option("--random", "count", type=click.IntRange(2, 64), default=2, show_default=True,
              help="So many random adapters, for as many clients or more, where none is named.")  # fmt: skip
@click.option("--clients", type=click.IntRange(1, 64), default=8, show_default=True, help="Requests at once.")
@click.option("--tokens", type=click.IntRange(2), default=64, show_default=True, help="Tokens of an answer.")
@click.option("--seconds", type=FiniteRange(0, min_open=True), default=15.0, show_default=True,
              help="How long each of the two closed loops lasts.")  # fmt: skip
@_with_runs
@pass_joints
def bench_serve(
    joints: Joints, model: str, adapters: tuple[tuple[str, Path], ...], peers: tuple[str, ...], binary: Path | None,
    count: int, clients: int, tokens: int, seconds: float, rounds: int, context: int, threads: int, as_json: bool,
) -> None:  # fmt: skip
    """Throughput and time to first token under load, beside llama-server and llama_cpp.server.

    Every server answers the same requests with the same adapters, one server at a time, in turns. An answer is
    greedy and of full length where the server can; tokens are counted by the server's own usage.

    \b
    Example:
      slm bench serve smollm2-135m-instruct --llama-server ~/llama.cpp/build/bin/llama-server
      slm bench serve smollm2-135m-instruct --random 16 --clients 16
    """
    from serve.bench.servers.run import ServeBenchOptions, bench_serving
    from serve.bench.servers.scenarios import LoadPlan

    named = one_of_each(adapters)
    if len(named) == 1:
        raise InputError("one adapter cannot be mixed", hint="Give two or more with --adapter, or none.")
    given = "count" in typed()
    if named and given:
        raise click.UsageError("--random makes adapters where --adapter names none.")
    if count > clients and given:
        raise click.UsageError(f"{clients} clients use no more than {clients} adapters: give --clients {count}.")
    plan = LoadPlan(clients, tokens, seconds, len(named) or count)
    result = bench_serving(
        joints.gguf_of(model), named, peers, plan, ServeBenchOptions(rounds, context, threads, binary)
    )
    if as_json:
        emit_json(result)
    else:
        _show(result)


def _show(result: dict[str, Any]) -> None:
    from rich.table import Table

    from serve.bench.report import failures, table_rows

    headings, rows = table_rows(result["servers"])
    table = Table(*headings)
    for row in rows:
        table.add_row(*row)
    out().print(table)
    plan = result["plan"]
    click.echo(
        f"{result['model']}, adapters: {', '.join(result['adapters'])}; {plan['clients']} clients, "
        f"{plan['tokens']} tokens each, {plan['seconds']:g} s; medians of {result['rounds']} rounds"
    )
    for server in result["servers"]:
        failed, _, words = failures(server)
        if failed:
            click.echo(f"{server['name']}: {failed} failed; the first: {words}")
        short = sum(server[scenario]["short"] for scenario in ("mixed", "one_adapter"))
        if short:
            click.echo(f"{server['name']}: {short} answers ended before {plan['tokens']} tokens")
    overhead = result["overhead"]
    if overhead["overhead"] is not None:
        click.echo(
            f"our loop beside llama_decode: {overhead['overhead']:.1%} of {overhead['steps']:,} steps' "
            f"{overhead['step_s']:.2f} s"
        )


@click.command("batch", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("model", default="smollm2-135m-instruct")
@click.option("--adapter", "adapters", type=NAMED_FILE, multiple=True,
              help="LoRA adapters (GGUF). Default: two random ones of rank 16.")  # fmt: skip
@click.option("--clients", type=click.IntRange(1, 64), default=8, show_default=True,
              help="Requests at once for an adapter; also twice and four times as many ask the server.")  # fmt: skip
@click.option("--tokens", type=click.IntRange(2), default=64, show_default=True, help="Tokens of an answer.")
@click.option("--seconds", type=FiniteRange(0, min_open=True), default=15.0, show_default=True,
              help="How long each loop of the server lasts; a batch is about twice as long.")  # fmt: skip
@_with_runs
@pass_joints
def bench_batch(
    joints: Joints, model: str, adapters: tuple[tuple[str, Path], ...], clients: int, tokens: int, seconds: float,
    rounds: int, context: int, threads: int, as_json: bool,
) -> None:  # fmt: skip
    """Throughput of `slm generate --batch` beside the best of `slm serve`.

    The same questions go to the same adapters in turns. A batch is measured from its first request to its last answer,
    the server in the middle of its load.

    \b
    Example:
      slm bench batch smollm2-135m-instruct --seconds 30
    """
    from serve.bench.batch import bench_batch as measured
    from serve.bench.servers.run import ServeBenchOptions
    from serve.bench.servers.scenarios import LoadPlan

    named = one_of_each(adapters)
    plan = LoadPlan(clients, tokens, seconds, len(named) or 2)
    result = measured(joints.gguf_of(model), named, plan, ServeBenchOptions(rounds, context, threads))
    if as_json:
        emit_json(result)
        return
    from rich.table import Table

    table = Table("", "tokens/s")
    for row in result["server"]:
        table.add_row(f"slm serve, {row['clients']} clients", f"{row['tokens_per_s']:.1f}")
    table.add_row("slm generate --batch", f"{result['batch']['tokens_per_s']:.1f}")
    out().print(table)
    failed = result["batch"]["failed"]
    click.echo(
        f"a batch has {result['ratio']} of the server's best; the goal is {result['goal']}"
        + (f"; {failed} of {result['batch']['lines']} lines failed" if failed else "")
    )
    click.echo(f"{result['model']}, adapters: {', '.join(result['adapters'])}; medians of {rounds} rounds")


@click.command("start", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("model", default="smollm2-135m-instruct")
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True, help="Medians over so many.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@pass_joints
def bench_start(joints: Joints, model: str, rounds: int, as_json: bool) -> None:
    """Seconds to a help, a list of models and a chat's prompt, beside llm and llama-cli.

    Peers are measured where they are on PATH. On a machine that is busy with something else the figures say little.

    \b
    Example:
      slm bench start smollm2-135m-instruct
    """
    from serve.bench import start
    from slm.weights.gguf_reader import read_gguf

    file = joints.gguf_of(model)
    read_gguf(file)  # a chat's prompt is there before its model is read
    result = start.bench_start(file, rounds)
    if as_json:
        emit_json(result)
        return
    from rich.table import Table

    titles = {"help_s": "--help, s", "list_s": "models, s", "prompt_s": "chat's prompt, s"}
    table = Table("", *titles.values())
    rows = [*result["programs"], {"name": "goal for slm", **result["goals"]}]
    for row in rows:
        table.add_row(row["name"], *("-" if row[key] is None else f"{row[key]:.3f}" for key in titles))
    out().print(table)
    for line in result["missing"]:
        click.echo(line)
    load = "unknown" if result["load_1min"] is None else f"{result['load_1min']:.2f}"
    click.echo(f"{Path(result['model']).name}; medians of {rounds} rounds; load average of the last minute {load}")


@click.command("engine", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("model", default="smollm2-135m-instruct")
@click.option("--peer", "peers", multiple=True, default=("all",), show_default=True,
              type=click.Choice(["llama.cpp", "openvino", "ik_llama.cpp", "vllm", "all"]))  # fmt: skip
@click.option("--program", "programs", type=NAMED_FILE, multiple=True,
              help="A peer's llama-server or vllm; openvino's is a Python that has it.")  # fmt: skip
@click.option("--install-peers", is_flag=True, help="Put OpenVINO GenAI into an environment in SLM_HOME before.")
@click.option("--prefill", type=click.IntRange(1), default=512, show_default=True, help="Tokens that are read.")
@click.option("--depth", type=click.IntRange(2), default=256, show_default=True, help="Tokens before each stream.")
@click.option("--decode", type=click.IntRange(2), default=64, show_default=True, help="Tokens of each stream.")
@click.option("--long", type=click.IntRange(1), default=700, show_default=True, help="Tokens of the long prompt.")
@click.option("--repeat", type=click.IntRange(1), default=3, show_default=True, help="Medians over so many turns.")
@with_threads
@with_context
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@pass_joints
def bench_engine(
    joints: Joints, model: str, peers: tuple[str, ...], programs: tuple[tuple[str, Path], ...], install_peers: bool,
    prefill: int, depth: int, decode: int, long: int, repeat: int, threads: int, context: int, as_json: bool,
) -> None:  # fmt: skip
    """How fast the engine itself reads and writes, beside llama.cpp, OpenVINO GenAI, ik_llama.cpp and vLLM.

    Prefill, 1, 4 and 16 streams, 16 short prompts at once, a long prompt, cold start and memory, without drafts. Every
    engine is started anew in its turn; ours also over HTTP, beside peers that are servers. A peer that is not there is
    named. On a machine that is busy with something else the figures say little.

    \b
    Example:
      slm bench engine smollm2-135m-instruct --peer openvino --install-peers
      slm bench engine gemma-3-270m --program llama.cpp=~/llama.cpp/build/bin/llama-server
    """
    from serve.bench.engine import contenders
    from serve.bench.engine.plan import EnginePlan
    from serve.bench.engine.run import bench_engines, engine_table

    wanted = contenders.NAMES if "all" in peers else peers
    places = one_of_each(programs)
    if unknown := [name for name in places if name not in contenders.NAMES]:
        raise click.UsageError(f"--program {unknown[0]}=...: the peers are {', '.join(contenders.NAMES)}")
    plan = EnginePlan(prefill=prefill, depth=depth, decode=decode, long=long, repeat=repeat)
    if context < plan.longest:
        raise click.UsageError(f"--context {context} is too short: these sizes need {plan.longest}")
    file = joints.gguf_of(model)
    setup = contenders.EngineSetup(file, plan, lambda: joints.checkpoint_of(model), context, threads, places)
    result = bench_engines(setup, wanted, contenders.install(wanted) if install_peers else ())
    if as_json:
        emit_json(result)
        return
    from rich import box
    from rich.table import Table

    headings, rows = engine_table(result, plan)
    table = Table(*headings, box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.columns[0].overflow = "fold"
    for row in rows:
        table.add_row(*row)
    out().print(table)
    for line in result["missing"]:
        click.echo(line)
    click.echo(
        f"{result['model']}, {result['threads']} threads, {result['cpu']}; medians of {repeat} turns, drafts off. "
        f"Tokens/s of a prompt of {prefill}, and of streams at a depth of {depth}; until the last of "
        f"{plan.short_prompts} short prompts has its first token; until that of a prompt of {long}; until the "
        "first of a cold start; memory then. "
        "A ratio above 1 says that ours is better; servers are beside ours over HTTP."
    )
