"""The pictures of the README, taken of the real thing: the page in a Chromium, and the chat in a terminal.

    make setup && pip install -c constraints.txt '.[browser]'
    python scripts/screenshots.py
    python scripts/screenshots.py --of terminal

Needs a Chromium (Debian, Ubuntu: apt install chromium fonts-noto-cjk) and, for the terminal, tmux. An index of the
handbook is made first, in a folder that is gone afterwards, unless one is named. The same questions are asked in both,
and nothing is drawn by hand.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PICTURES = ROOT / "docs/pictures"
SLM = [sys.executable, "-m", "slm_cli"]
QUESTIONS = (
    "How long is an account locked after wrong passwords?",
    "契約書は、契約が終わってから何年保存しますか。",
)
_MOST_BYTES = 150_000
_WAIT_S = 180
_COLUMNS, _LINES = 100, 24


def chromium() -> str:
    """The browser's program: SLM_CHROMIUM, or the first one on PATH. Raises SystemExit where there is none."""
    named = os.environ.get("SLM_CHROMIUM")
    names = [named] if named else ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"]
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        raise SystemExit("error: no Chromium was found. Debian, Ubuntu: apt install chromium fonts-noto-cjk")
    return found


def surroundings() -> dict[str, str]:
    """The environment of what runs in another folder: it finds the program, and its texts are UTF-8."""
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "LANG": "C.UTF-8",
    }


@contextmanager
def serving(model: str, index: str, place: Path, options: list[str]) -> Iterator[str]:
    """The address of a server with the index, on a free port; it ends with the block."""
    command = [*SLM, "serve", model, "--rag", index, "--port", "0", *options]
    with subprocess.Popen(command, cwd=place, env=surroundings(), stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        try:
            for line in server.stderr:
                if found := re.search(r"listening on (http://\S+)", line):
                    break
                print(line, end="", file=sys.stderr)
            else:
                raise SystemExit("error: the server did not start; what it said stands above")
            yield found[1]
        finally:
            server.terminate()


@contextmanager
def browser() -> Iterator[Any]:
    """A Chromium that plays at a screen of 1100 by 760 points."""
    try:
        from playwright.sync_api import sync_playwright  # type: ignore[import-not-found,unused-ignore]
    except ImportError as error:
        raise SystemExit("error: install the driver: pip install -c constraints.txt '.[browser]'") from error

    with sync_playwright() as play:
        running = play.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        yield running
        running.close()


def page_picture(model: str, index: str, place: Path, out: Path, options: list[str]) -> None:
    """The page with the questions answered from the documents."""
    with serving(model, index, place, options) as url, browser() as running:
        page = running.new_page(viewport={"width": 1100, "height": 760}, locale="en-US", color_scheme="light")
        page.set_default_timeout(_WAIT_S * 1000)
        page.goto(url)
        page.locator("#ragLabel").click()
        for number, question in enumerate(QUESTIONS):
            page.fill("#input", question)
            page.press("#input", "Enter")
            page.wait_for_selector(f"article.assistant:not(.live) >> nth={number}")
            page.wait_for_selector("#send:visible")
        # How long it took says how busy this machine was. Figures stand where they are measured: docs/serving.md.
        page.locator("article .meta").evaluate_all("rows => rows.forEach(row => row.remove())")
        page.screenshot(path=out)


def terminal_picture(model: str, index: str, place: Path, out: Path, options: list[str]) -> None:
    """The chat as a terminal of 100 by 24 shows it: typed into by tmux, and what stands there drawn by the browser."""
    session = f"slm-picture-{os.getpid()}"
    tmux = ["tmux", "-L", session]
    if shutil.which("tmux") is None:
        raise SystemExit("error: tmux was not found. Debian, Ubuntu: apt install tmux")

    def screen(*flags: str) -> str:
        return subprocess.run([*tmux, "capture-pane", "-p", *flags], capture_output=True, text=True, check=True).stdout

    def settled(prompts: int) -> None:
        """Wait until the prompt stands there once more, and nothing moves."""
        end, before = time.monotonic() + _WAIT_S, ""
        while time.monotonic() < end:
            time.sleep(1)
            now = screen()
            if now == before and len(re.findall(r"^\S*(?:>|❯) ?", now, re.MULTILINE)) >= prompts:
                return
            before = now
        raise SystemExit(f"error: the chat did not answer within {_WAIT_S} s; it shows:\n{before}")

    command = shlex.join([*SLM, "chat", model, "--rag", index, "--no-save", *options])
    size = ["-x", str(_COLUMNS), "-y", str(_LINES)]
    environment = ["env", "TERM=xterm-256color", "COLORTERM=truecolor"]
    subprocess.run(
        [*tmux, "-u", "new-session", "-d", *size, shlex.join(environment) + " " + command], cwd=place,
        env=surroundings(), check=True,
    )  # fmt: skip
    try:
        settled(1)
        for number, question in enumerate(QUESTIONS):
            subprocess.run([*tmux, "send-keys", "-l", question], check=True)
            subprocess.run([*tmux, "send-keys", "Enter"], check=True)
            settled(number + 2)
        shown = screen("-e")
    finally:
        subprocess.run([*tmux, "kill-server"], check=False)
    with browser() as running:
        page = running.new_page(viewport={"width": 1000, "height": 700})
        page.set_content(html_of(shown))
        page.locator("pre").screenshot(path=out)


def html_of(shown: str) -> str:
    """A screen with its colours, as a page; each character has its cell, two for a wide one."""
    import io

    from rich.console import Console
    from rich.terminal_theme import MONOKAI
    from rich.text import Text

    console = Console(record=True, file=io.StringIO(), width=_COLUMNS, force_terminal=True, color_system="truecolor")
    for line in shown.rstrip().splitlines():
        console.print(Text.from_ansi(line), overflow="crop", no_wrap=True)
    body = console.export_html(theme=MONOKAI, inline_styles=True, code_format="{code}")
    style = (
        "display:inline-block;margin:0;padding:16px 20px;border-radius:8px;"
        f"background:{MONOKAI.background_color.hex};color:{MONOKAI.foreground_color.hex};"
        "font:14px/1.45 'Noto Sans Mono CJK JP','DejaVu Sans Mono',monospace"
    )
    return f'<meta charset="utf-8"><body style="margin:0"><pre style="{style}">{body}</pre></body>'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="gemma-3-270m")
    parser.add_argument("--index", help="An index of data/handbook that is there [default: made anew].")
    parser.add_argument("--refuse-at", help="As of `slm serve` [default: as the reader says].")
    parser.add_argument("--of", choices=["page", "terminal"], default="page", help="[default: page]")
    parser.add_argument("--out", type=Path, default=PICTURES)
    asked = parser.parse_args()
    options = ["--refuse-at", asked.refuse_at] if asked.refuse_at else []
    makers = {"page": page_picture, "terminal": terminal_picture}
    with tempfile.TemporaryDirectory() as folder:
        place, index = ROOT, asked.index
        if not index:  # in a folder like a user's own, so that no path of this machine is in the picture
            place, index = Path(folder), "./handbook"
            shutil.copytree(ROOT / "data/handbook", place / "docs")
            add = [*SLM, "rag", "add", index, "docs/en", "docs/ja"]
            subprocess.run(add, cwd=place, env=surroundings(), check=True)
        out = (asked.out / f"{asked.of}.png").resolve()
        makers[asked.of](asked.model, index, place, out, options)
    size = out.stat().st_size
    print(f"{out}: {size:,} bytes")
    if size >= _MOST_BYTES:
        raise SystemExit(f"error: '{out}' has {size:,} bytes; a picture of the documents has less than {_MOST_BYTES:,}")


if __name__ == "__main__":
    main()
