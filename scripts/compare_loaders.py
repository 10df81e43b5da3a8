"""What is left of a Confluence page in LangChain's ConfluenceLoader, in LlamaIndex's ConfluenceReader, and here.

    python scripts/compare_loaders.py            makes an environment for the two, in a folder that is removed again
    python scripts/compare_loaders.py --python .venv-loaders/bin/python       one that has them already

All three read the same two pages of the same site (tests/fake_confluence.py), as they come: LangChain's loader asks for
the storage format, LlamaIndex's for the exported view, which Confluence renders itself. Prints a table in Markdown.
"""

# pages as Confluence writes them
from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tempfile
import venv
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from rag.sources.confluence.body.around import Around
from rag.sources.confluence.rest.client import Client
from rag.sources.confluence.rest.convert import nodes_of, read_page
from rag.sources.confluence.rest.credentials import find_credentials
from rag.sources.confluence.rest.site import open_site
from rag.sources.reader import markdown_of
from tests.fake_confluence import TOKEN, FakeConfluence, FakePage, serving
from tests.tiny_confluence import macro

PEERS = {
    "LangChain": ("langchain-community", "atlassian-python-api", "beautifulsoup4", "lxml"),
    "LlamaIndex": ("llama-index-readers-confluence",),
}
_CODE = 'if x < 3:\n    print("kumquat")'
_ROWS = (
    "<tr><th>Day</th><th>Meal</th><th>Soup</th></tr><tr><td rowspan='2'>Monday</td><td>Lunch</td><td>Pumpkin</td></tr>"
    "<tr><td>Dinner</td><td>Leek</td></tr>"
)
TITLE, INCLUDED = "Canteen", "Contacts"
# The parts of the page: as they are stored, and as Confluence renders them for an export.
PARTS: Mapping[str, tuple[str, str]] = {
    "heading": ("<h2>Opening hours</h2>", '<h2 id="Canteen-Openinghours">Opening hours</h2>'),
    "blank": ("<p>ten&nbsp;days</p>", "<p>ten&nbsp;days</p>"),
    "japanese": ("<p>有給<strong>休暇</strong>は20日です。</p>", "<p>有給<strong>休暇</strong>は20日です。</p>"),
    "code": (
        '<ac:structured-macro ac:name="code" ac:macro-id="5f1c-uuid"><ac:parameter ac:name="language">python'
        f"</ac:parameter><ac:plain-text-body><![CDATA[{_CODE}]]></ac:plain-text-body></ac:structured-macro>",
        '<div class="code panel pdl"><div class="codeContent panelContent pdl"><pre class="syntaxhighlighter-pre" '
        'data-syntaxhighlighter-params="brush: python; gutter: false; theme: Confluence" data-theme="Confluence">'
        f"{_CODE.replace('<', '&lt;')}</pre></div></div>",
    ),
    "table": (
        f"<table><tbody>{_ROWS}</tbody></table>",
        f'<div class="table-wrap"><table class="confluenceTable"><tbody>{_ROWS}</tbody></table></div>',
    ),
    "panel": (
        macro("info", "<p>Mind the gap.</p>", title="Before you go"),
        '<div class="confluence-information-macro confluence-information-macro-information"><p class="title">Before '
        'you go</p><span class="aui-icon aui-icon-small aui-iconfont-info confluence-information-macro-icon"></span>'
        '<div class="confluence-information-macro-body"><p>Mind the gap.</p></div></div>',
    ),
    "tasks": (
        "<ac:task-list><ac:task><ac:task-id>7</ac:task-id><ac:task-status>complete</ac:task-status>"
        "<ac:task-body>Book the hall</ac:task-body></ac:task><ac:task><ac:task-id>8</ac:task-id><ac:task-status>"
        "incomplete</ac:task-status><ac:task-body>Send the bill</ac:task-body></ac:task></ac:task-list>",
        '<ul class="inline-task-list"><li class="checked" data-inline-task-id="7"><span>Book the hall</span></li>'
        '<li data-inline-task-id="8"><span>Send the bill</span></li></ul>',
    ),
    "status": (
        macro("status", title="APPROVED", colour="Green"),
        '<p><span class="status-macro aui-lozenge aui-lozenge-success">APPROVED</span></p>',
    ),
    "expand": (
        macro("expand", "<p>The back door is open.</p>", title="More details"),
        '<div class="expand-container conf-macro output-block"><div class="expand-control"><span class="expand-control-'
        'text">More details</span></div><div class="expand-content"><p>The back door is open.</p></div></div>',
    ),
    "link": (
        '<p>See <ac:link><ri:page ri:content-title="Travel costs"/></ac:link> and <ac:link>'
        '<ri:page ri:content-title="Rooms"/>'
        "<ac:plain-text-link-body><![CDATA[the floor guide]]></ac:plain-text-link-body></ac:link>.</p>",
        '<p>See <a href="/pages/1.html">Travel costs</a> and <a href="/pages/2.html">the floor guide</a>.</p>',
    ),
    "image": (
        '<p><ac:image ac:alt="floor plan"><ri:attachment ri:filename="plan-3f.png"/></ac:image></p>',
        '<p><span class="confluence-embedded-file-wrapper"><img class="confluence-embedded-image" alt="floor plan" '
        'src="/download/attachments/1/plan-3f.png"></span></p>',
    ),
    "jira": (
        macro("jira", key="HR-42", server="Jira"),
        '<p><span class="jira-issue" data-jira-key="HR-42"><a href="/browse/HR-42">HR-42</a></span></p>',
    ),
    "date": ('<p>From <time datetime="2024-04-01"/></p>', '<p>From <time datetime="2024-04-01">01 Apr 2024</time></p>'),
    "include": (
        '<ac:structured-macro ac:name="include"><ac:parameter ac:name=""><ac:link>'
        '<ri:page ri:content-title="Contacts"/></ac:link></ac:parameter></ac:structured-macro>',
        "<p>Ask Ms. Ueda.</p>",
    ),
}  # fmt: skip


def _row_of(*words: str) -> Callable[[str], bool]:
    """A line that holds these words and no other row's."""
    others = {"Day", "Lunch", "Dinner"} - set(words)
    return lambda text: any(
        all(word in line for word in words) and not any(other in line for other in others) for line in text.split("\n")
    )


def _holds(pattern: str) -> Callable[[str], bool]:
    return lambda text: re.search(pattern, text) is not None


CHECKS: Mapping[str, Callable[[str], bool]] = {
    "a heading is a heading": _holds(r"(?m)^#+ Opening hours"),
    "code": lambda text: 'print("kumquat")' in text,
    "code with its lines and indents": lambda text: _CODE in text,
    "the language of code": _holds(r"```\s*python"),
    "a table row in one line": _row_of("Lunch", "Pumpkin"),
    "a merged cell in each of its rows": _row_of("Monday", "Dinner"),
    "the header of a table as one": _row_of("Day", "Meal", "Soup"),
    "title and text of a panel": lambda text: "Before you go" in text and "Mind the gap" in text,
    "tasks": lambda text: "Book the hall" in text and "Send the bill" in text,
    "whether a task is done": lambda text: bool(_holds(r"\[[xX]\]\s*Book the hall")(text)) and bool(
        _holds(r"\[ \]\s*Send the bill")(text)
    ),
    "a status": lambda text: "APPROVED" in text,
    "what an expand hides, and its title": lambda text: "back door" in text and "More details" in text,
    "the title of a linked page": lambda text: "Travel costs" in text,
    "the words of a link": lambda text: "the floor guide" in text,
    "the words of an image": lambda text: "floor plan" in text,
    "the file of an image": lambda text: "plan-3f.png" in text,
    "a Jira key": lambda text: "HR-42" in text,
    "a date": _holds("2024-04-01|01 Apr 2024"),
    "an included page": lambda text: "Ask Ms. Ueda" in text,
    "Japanese without blanks in words": lambda text: "有給休暇は20日です" in text.replace("**", ""),
    "words beside a no-break space stay apart": _holds(r"ten[ \u00a0]days"),
    "no settings, ids or states of macros in the text": lambda text: not re.search(
        r"5f1c|Green|\bincomplete\b|\bcomplete\b|brush:|gutter", text
    ),
}  # fmt: skip

# Run in the peers' environment: prints {title: text}.
_LANGCHAIN = """
import json, sys
from langchain_community.document_loaders import ConfluenceLoader
loader = ConfluenceLoader(url=sys.argv[1], token=sys.argv[2], space_key="DOCS", cloud=False,
                          include_restricted_content=True, max_pages=10)
print(json.dumps({d.metadata["title"]: d.page_content for d in loader.load()}))
"""
_LLAMA_INDEX = """
import json, sys
from llama_index.readers.confluence import ConfluenceReader
reader = ConfluenceReader(base_url=sys.argv[1], api_token=sys.argv[2], cloud=False)
print(json.dumps({d.metadata["title"]: d.text for d in reader.load_data(space_key="DOCS", max_num_results=10)}))
"""


class ListedConfluence(FakeConfluence):
    """With the plain listing of v1 and the exported view, which the two peers ask for."""

    def _routes(self) -> Any:
        return [(r"/rest/api/content", self._listed), *super()._routes()]

    def _listed(self, query: dict[str, str]) -> tuple[int, dict[str, str], Any]:
        start, limit = int(query.get("start", "0")), int(query.get("limit", "25"))
        pages = list(self.shown(query["spaceKey"]).values())
        found = [self._v1(page, query.get("expand", "")) for page in pages[start : start + limit]]
        links = {"base": "", "context": ""}
        if start + limit < len(pages):
            links["next"] = "/rest/api/content?" + urlencode({**query, "start": start + limit})
        return 200, {}, {"results": found, "start": start, "limit": limit, "size": len(found), "_links": links}

    def _v1(self, page: FakePage, expand: str) -> dict[str, Any]:
        value = super()._v1(page, expand)
        if "body.export_view" in expand:
            view = "".join(shown for _, shown in PARTS.values()) if page.title == TITLE else page.body
            value["body"]["export_view"] = {"value": view, "representation": "export_view"}
        return value


def ours(url: str) -> dict[str, str]:
    """Each page's text as an index would hold it, by title, over REST."""
    site, client, space = open_site(lambda base: Client(base, find_credentials(None)), url, "DOCS")
    with client:
        pages = [
            page for some in site.listing(space.key, space.id, bodies=True, on_note=lambda _: None) for page in some
        ]
    nodes = {page.title: nodes_of(page) for page in pages}
    reads = {
        page.title: read_page(page, Around(page.space, page.title, lambda _, title: nodes.get(title))) for page in pages
    }
    return {title: markdown_of(read.document) for title, read in reads.items() if read is not None}


def theirs(python: Path, program: str, url: str) -> dict[str, str] | str:
    """Each page's text by a peer, by title; or what it failed at."""
    command = [str(python), "-c", program, url, TOKEN]
    run = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    if run.returncode:
        return (run.stderr.strip().splitlines() or ["it said nothing"])[-1]
    texts: dict[str, str] = json.loads(run.stdout.strip().splitlines()[-1])
    return texts


@contextmanager
def environment(python: Path | None) -> Iterator[Path]:
    """An interpreter that has the peers: the named one, or that of a new environment."""
    if python is not None:
        yield python
        return
    with tempfile.TemporaryDirectory(prefix="slm-loaders-") as folder:
        venv.create(folder, with_pip=True)
        made = Path(folder) / "bin" / "python"
        packages = [name for names in PEERS.values() for name in names]
        subprocess.run([str(made), "-m", "pip", "install", "-q", "--disable-pip-version-check", *packages], check=True)
        yield made


def versions(python: Path) -> dict[str, str]:
    """The version of each peer's first package."""
    names = [packages[0] for packages in PEERS.values()]
    program = f"import importlib.metadata as m, json; print(json.dumps([m.version(n) for n in {names!r}]))"
    found = subprocess.run([str(python), "-c", program], capture_output=True, text=True, check=True).stdout
    return dict(zip(PEERS, json.loads(found), strict=True))


def table(columns: Mapping[str, str]) -> Iterator[str]:
    """The lines of a Markdown table: what is kept (✓) or lost (✗) of the page by each loader."""
    yield "| kept | " + " | ".join(columns) + " |"
    yield "|---|" + "---|" * len(columns)
    for name, check in CHECKS.items():
        yield f"| {name} | " + " | ".join("✓" if check(text) else "✗" for text in columns.values()) + " |"
    counts = (f"{sum(check(text) for check in CHECKS.values())} of {len(CHECKS)}" for text in columns.values())
    yield "| **all** | " + " | ".join(counts) + " |"


def site() -> ListedConfluence:
    """A Data Center with the two pages."""
    made = ListedConfluence(cloud=False)
    made.add(INCLUDED, "<p>Ask Ms. Ueda.</p>")
    made.add(TITLE, "".join(stored for stored, _ in PARTS.values()))
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", type=Path, help="an interpreter that has both peers")
    parser.add_argument("--texts", type=Path, help="also write each loader's text into this folder")
    given = parser.parse_args()
    os.environ["CONFLUENCE_TOKEN"] = TOKEN
    columns: dict[str, str] = {}
    with serving(site()) as url, environment(given.python) as python:
        named = versions(python)
        for name, program in (("LangChain", _LANGCHAIN), ("LlamaIndex", _LLAMA_INDEX)):
            texts = theirs(python, program, url)
            if isinstance(texts, str) or TITLE not in texts:
                print(f"{name} {named[name]} gave nothing: {texts}", file=sys.stderr)
            else:
                columns[f"{name} {named[name]}"] = texts[TITLE]
        columns[f"slm {importlib.metadata.version('slm-cpu')}"] = ours(url)[TITLE]
    print("\n".join(table(columns)))
    if given.texts is not None:
        given.texts.mkdir(parents=True, exist_ok=True)
        for name, text in columns.items():
            (given.texts / f"{name.split()[0]}.txt").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
