"""Runs numbered damaged-input cases in one process with little memory; the parent watches its output.

A line on stdout before each case (`start N what`) and after it (`done N seconds outcome`), so that whoever watches
knows the case during which the process died. Outcomes: the error's class name, `sound`, or `bad: ...`. Ten seconds of
processor time in one case end the process: a busy machine is no hang.
"""

from __future__ import annotations

import json
import resource
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from tests.damage import OF_CHECKPOINT, OF_GGUF, damaged, sources

# Four times the processor's time where lines are counted.
LIMIT, HANG_S = 2 << 30, 40.0 if "coverage" in sys.modules else 10.0


def _leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def _run_checkpoint(case: int, checkpoint: Path, name: str, work: Path) -> str:
    from convert.model import convert_checkpoint

    original = (checkpoint / name).read_bytes() if (checkpoint / name).exists() else b""
    how, data = damaged(original, OF_CHECKPOINT[name], case)
    folder, out = work / "in", work / "out"
    shutil.copytree(checkpoint, folder)
    out.mkdir()
    (folder / name).write_bytes(data)
    if name.endswith(".index.json"):  # it counts only where there is no single file
        (folder / "model.safetensors").rename(folder / "all.safetensors")
    print(f"start {case} {checkpoint.name}/{name} {how}", flush=True)
    return _outcome(lambda: convert_checkpoint(folder, out / "m.gguf", ("f16", "q8_0", "f32")[case % 3]), out)


def _run_gguf(case: int, gguf: Path, work: Path) -> str:
    from convert.publish.inspect import inspect_gguf, list_tensors
    from convert.quality.verify import verify_model
    from convert.quantize.quantize import quantize_file
    from convert.restore import restore_checkpoint

    how, data = damaged(gguf.read_bytes(), OF_GGUF, case)
    path, out = work / "m.gguf", work / "out"
    out.mkdir()
    path.write_bytes(data)
    print(f"start {case} {gguf.name} {how}", flush=True)

    def every_reader() -> None:
        json.dumps([inspect_gguf(path), list_tensors(path)], allow_nan=False)
        if case % 25 == 0:
            quantize_file(path, out / "q.gguf", "q4_0", threads=1)
        elif case % 5 == 0:
            verify_model(path, gguf, max_tokens=16)
        else:
            restore_checkpoint(path, out / "back")

    return _outcome(every_reader, out)


def _outcome(action: Callable[[], object], out: Path) -> str:
    from slm.errors import SlmError

    try:
        action()
    except SlmError as error:
        left = _leftovers(out)
        if left:
            return f"bad: left {left} behind after {type(error).__name__}"
        return type(error).__name__
    except BaseException as error:
        last = traceback.extract_tb(error.__traceback__)
        where = [f"{Path(frame.filename).name}:{frame.lineno}" for frame in last[-3:]]
        return f"bad: {type(error).__name__}: {str(error)[:150]!r} at {' < '.join(reversed(where))}"
    return "sound"


def main(folder: Path, scratch: Path, first: int, last: int) -> None:
    from slm.terminal.console import set_verbosity

    set_verbosity(quiet=True, debug=False)
    import gguf  # noqa: F401
    import tokenizers  # noqa: F401

    from slm.native.llama import library

    library()
    resource.setrlimit(resource.RLIMIT_AS, (LIMIT, LIMIT))
    checkpoints, files = sources(folder), sorted(folder.glob("*.gguf"))
    for case in range(first, last):
        work = scratch / f"case-{case}"
        work.mkdir()
        signal.setitimer(signal.ITIMER_PROF, HANG_S)
        started = time.process_time()
        try:
            if case % 3 == 0:
                outcome = _run_gguf(case, files[case // 3 % len(files)], work)
            else:
                outcome = _run_checkpoint(case, *checkpoints[case % len(checkpoints)], work)
        finally:
            shutil.rmtree(work, ignore_errors=True)
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(f"done {case} {time.process_time() - started:.2f} {outcome}", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
