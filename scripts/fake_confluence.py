"""A Confluence to try `slm rag sync` with: each file of a folder is a page, so that editing a file edits the page.

    python scripts/fake_confluence.py wiki            a Data Center; --cloud for a Cloud site
    CONFLUENCE_TOKEN=s3cret-token slm rag sync try --confluence-url http://127.0.0.1:8090 --space DOCS

Files end with .xhtml and hold a page in the storage format; a folder that is not there is made, with two pages.
"""

from __future__ import annotations

import argparse
import sys
import time
from datetime import datetime, timezone
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.fake_confluence import EMAIL, TOKEN, FakeConfluence, serving

PAGES = {
    "Canteen": "<h1>Opening hours</h1><p>The canteen closes at 13:40.</p>"
    "<table><tbody><tr><th>Day</th><th>Soup</th></tr><tr><td>Monday</td><td>Pumpkin</td></tr></tbody></table>",
    "社員食堂": "<h1>営業時間</h1><p>社員食堂は13時40分に閉まります。</p>",
}


def read_folder(site: FakeConfluence, folder: Path, known: dict[Path, tuple[str, float]]) -> None:
    """Make the site's pages what the folder's files are; `known` has the page and the time of each file."""
    there = set()
    for file in sorted(folder.glob("*.xhtml")):
        try:
            changed, text = file.stat().st_mtime, file.read_text(encoding="utf-8")
        except FileNotFoundError:  # it was deleted, or is being replaced, since the folder was listed
            continue
        there.add(file)
        if file not in known:
            known[file] = (site.add(file.stem, text).id, changed)
        elif known[file][1] != changed:
            site.edit(known[file][0], text)
            known[file] = (known[file][0], changed)
    for file in known.keys() - there:
        site.delete(known.pop(file)[0])


def main() -> None:
    """Serve a folder's pages until Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--cloud", action="store_true", help="the interface of Cloud instead of Data Center")
    parser.add_argument("--port", type=int, default=8090)
    given = parser.parse_args()
    if not given.folder.exists():
        given.folder.mkdir(parents=True)
        for title, body in PAGES.items():
            (given.folder / f"{title}.xhtml").write_text(body + "\n", encoding="utf-8")
    site, known = FakeConfluence(cloud=given.cloud), dict[Path, tuple[str, float]]()
    site.clock = datetime.now(timezone.utc)
    read_folder(site, given.folder, known)
    with serving(site, given.port) as url:
        account = f"CONFLUENCE_EMAIL={EMAIL} " if given.cloud else ""
        print(f"{len(known)} pages of '{given.folder}' at {url}; Ctrl-C ends it. Sync them with:", flush=True)
        print(f"  {account}CONFLUENCE_TOKEN={TOKEN} slm rag sync try --confluence-url {url} --space DOCS", flush=True)
        while True:
            time.sleep(0.3)
            site.clock = datetime.now(timezone.utc)
            read_folder(site, given.folder, known)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
