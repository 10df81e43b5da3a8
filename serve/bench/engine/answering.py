"""An engine that answers prompts of token ids in this process: ours, llama.cpp as a library, or OpenVINO GenAI.

Run as a program (`python answering.py ENGINE OPTIONS`, OPTIONS as JSON) it reads orders from stdin and writes their
answers to stdout, each a line of JSON. It knows nothing of what is measured. The interpreter may be that of another
environment, so nothing of ours is imported before it is needed.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

# For each prompt when its pieces came, seconds since all were asked, and how many tokens they were.
Timed = list[tuple[list[float], int]]
# Answers prompts at once with so many tokens each, greedily, also where the model would end.
Answerer = Callable[[Sequence[Sequence[int]], int], Timed]
_ROWS = 512  # of a batch: what llama.cpp's programs compute at once (common/common.h, `n_ubatch`)


@contextmanager
def _ours(options: Mapping[str, Any]) -> Iterator[Answerer]:
    """Our engine as `slm generate` opens it, without drafts."""
    from serve.engine.engine import open_engine
    from serve.engine.events import Event
    from slm.errors import SlmError
    from slm.joints import Finish, SamplingOptions

    def answer(prompts: Sequence[Sequence[int]], tokens: int) -> Timed:
        events: queue.SimpleQueue[tuple[int, float, Event]] = queue.SimpleQueue()
        sampling = SamplingOptions(max_tokens=tokens, ignore_eos=True)
        begun = time.perf_counter()
        for number, ids in enumerate(prompts):

            def take(event: Event, number: int = number) -> None:
                events.put((number, time.perf_counter() - begun, event))

            engine.begin_complete(list(ids), take, sampling=sampling)
        times: list[list[float]] = [[] for _ in prompts]
        counts: dict[int, int] = {}
        while len(counts) < len(prompts):
            number, at, event = events.get()
            if isinstance(event, SlmError):
                raise event
            if isinstance(event, Finish):
                counts[number] = event.completion_tokens
                times[number] = times[number] or [at]  # a token that is no whole character shows nothing
            else:
                times[number].append(at)
        return [(times[number], counts[number]) for number in range(len(prompts))]

    with open_engine(
        Path(options["model"]), {}, threads=options["threads"], context=options["context"],
        parallel=options["parallel"], draft=0,
    ) as engine:  # fmt: skip
        yield answer


@contextmanager
def _llama_cpp(options: Mapping[str, Any]) -> Iterator[Answerer]:
    """llama_decode of the library that is installed, in the plainest loop: prompts in batches, then a row for each.

    A sequence keeps its cells: the same prompt is not read again, as llama.cpp's own server does.
    """
    from slm.native.llama import ContextParams, decode_rows, library, logits_at, open_context, open_model

    with ExitStack() as stack:
        lib, model = library(), open_model(stack, Path(options["model"]))
        params = ContextParams(options["cells"], _ROWS, options["parallel"], options["threads"])
        context = open_context(stack, model, params)
        memory = lib.llama_get_memory(context)
        held: dict[int, list[int]] = {}

        def picked(rows: Sequence[tuple[int, int, int, bool]], chosen: dict[int, int]) -> None:
            """Compute rows of (token, position, sequence, whether it is the last of its sequence)."""
            decode_rows(context, rows)
            for index, (_, _, sequence, last) in enumerate(rows):
                if last:
                    chosen[sequence] = int(logits_at(model, context, index).argmax())

        def answer(prompts: Sequence[Sequence[int]], tokens: int) -> Timed:
            begun = time.perf_counter()
            waiting: list[tuple[int, int, int, bool]] = []
            for sequence in [*held]:  # cells are shared: those of nobody give way
                if sequence >= len(prompts) or held[sequence] != list(prompts[sequence]):
                    lib.llama_memory_seq_rm(memory, sequence, 0, -1)
                    del held[sequence]
            for sequence, ids in enumerate(prompts):
                known = len(ids) - 1 if sequence in held else 0
                lib.llama_memory_seq_rm(memory, sequence, known, -1)
                waiting += [(ids[at], at, sequence, at == len(ids) - 1) for at in range(known, len(ids))]
                held[sequence] = list(ids)
            times: list[list[float]] = [[] for _ in prompts]
            chosen: dict[int, int] = {}
            for first in range(0, len(waiting), _ROWS):
                rows = waiting[first : first + _ROWS]
                picked(rows, chosen)
                for _, _, sequence, last in rows:
                    if last:
                        times[sequence].append(time.perf_counter() - begun)
            for step in range(tokens - 1):
                picked([(chosen[n], len(ids) + step, n, True) for n, ids in enumerate(prompts)], chosen)
                at = time.perf_counter() - begun
                for one in times:
                    one.append(at)
            return [(one, tokens) for one in times]

        yield answer


@contextmanager
def _openvino(options: Mapping[str, Any]) -> Iterator[Answerer]:
    """OpenVINO GenAI's pipeline of many requests on the GGUF file itself.

    Its first reader of GGUF knows few architectures; its frontend, where there is one, is tried after it
    (https://openvinotoolkit.github.io/openvino.genai/docs/guides/gguf).
    """
    import numpy as np
    import openvino  # type: ignore[import-not-found,unused-ignore]
    import openvino_genai as genai  # type: ignore[import-not-found,unused-ignore]

    scheduler = genai.SchedulerConfig()
    scheduler.max_num_seqs = options["parallel"]
    scheduler.max_num_batched_tokens = max(options["context"], _ROWS)  # a prompt is read in one step
    scheduler.enable_prefix_caching = True
    properties: dict[str, Any] = {"INFERENCE_NUM_THREADS": options["threads"]}
    model = options["model"]
    try:
        pipeline = genai.ContinuousBatchingPipeline(model, scheduler, "CPU", properties)
    except RuntimeError as error:
        try:
            properties["GGUF_READER"] = "FRONTEND"
            pipeline = genai.ContinuousBatchingPipeline(model, scheduler, "CPU", properties)
        except RuntimeError:
            raise error from None
    requests = 0

    def answer(prompts: Sequence[Sequence[int]], tokens: int) -> Timed:
        nonlocal requests
        config = genai.GenerationConfig(max_new_tokens=tokens, ignore_eos=True, do_sample=False)
        begun = time.perf_counter()
        handles = []
        for ids in prompts:
            requests += 1
            handles.append(pipeline.add_request(requests, openvino.Tensor(np.array([ids], np.int64)), config))
        times: list[list[float]] = [[] for _ in prompts]
        while pipeline.has_non_finished_requests():
            pipeline.step()
            at = time.perf_counter() - begun
            for handle, one in zip(handles, times, strict=True):
                while handle.can_read():
                    one += [at] * sum(len(output.generated_ids) for output in handle.read().values())
        return [(one, len(one)) for one in times]

    yield answer


ENGINES: Mapping[str, Callable[[Mapping[str, Any]], AbstractContextManager[Answerer]]] = {
    "slm": _ours, "llama.cpp": _llama_cpp, "openvino": _openvino,
}  # fmt: skip


def main(name: str, options: Mapping[str, Any]) -> None:
    """Answer orders ({"prompts": ids, "tokens": count}) with {"streams": [[times, tokens]]} or {"error": words}."""
    told = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a library prints is no answer
    with ENGINES[name](options) as answer:
        for line in sys.stdin:
            order = json.loads(line)
            try:
                reply: dict[str, Any] = {"streams": answer(order["prompts"], order["tokens"])}
            except Exception as error:
                reply = {"error": f"{type(error).__name__}: {error}"}
            print(json.dumps(reply), file=told, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
