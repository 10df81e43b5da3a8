"""The page's files and headers, without a browser: served whole, self-contained, in two languages."""

from __future__ import annotations

import gzip
import re
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from serve.server.api_docs import add_api_docs
from serve.server.page import CONTENT_SECURITY_POLICY, PAGE_PATHS, add_page

ROOT = Path(__file__).parent.parent
WEB = ROOT / "serve" / "server" / "web"
SOURCES = {path.name: path.read_text(encoding="utf-8") for path in sorted(WEB.iterdir())}
SCRIPTS = {name: text for name, text in SOURCES.items() if name.endswith(".js")}
NAMESPACE = "http://www.w3.org/2000/svg"  # a name of XML, not an address that is asked


@pytest.fixture(scope="module")
def page() -> TestClient:
    app = FastAPI()
    add_page(app)
    return TestClient(app)


def fetched(page: TestClient, path: str) -> Any:
    reply: Any = page.get(path)
    assert reply.status_code == 200, path
    return reply


def test_every_file_of_the_folder_is_served_and_packaged() -> None:
    assert {Path(path).name or "index.html" for path in PAGE_PATHS} == set(SOURCES)
    assert '"serve.server" = ["web/*"]' in (ROOT / "pyproject.toml").read_text(encoding="utf-8").splitlines()


def test_files_have_their_types_and_the_strict_headers(page: TestClient) -> None:
    types = {"": "text/html", "html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
    for path in PAGE_PATHS:
        reply = fetched(page, path)
        assert reply.headers["content-type"].split(";")[0] == types[Path(path).suffix[1:]]
        assert reply.headers["content-security-policy"] == CONTENT_SECURITY_POLICY
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert reply.headers["referrer-policy"] == "no-referrer"
        assert reply.text == SOURCES[Path(path).name or "index.html"]


def test_the_policy_lets_the_page_run_and_reach_only_itself() -> None:
    rules = dict(rule.strip().partition(" ")[::2] for rule in CONTENT_SECURITY_POLICY.split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["script-src"] == rules["style-src"] == rules["connect-src"] == "'self'"
    assert rules["img-src"] == "'self' data:"
    assert rules["base-uri"] == rules["form-action"] == rules["frame-ancestors"] == "'none'"
    assert rules["require-trusted-types-for"] == "'script'" and rules["trusted-types"] == "'none'"
    assert "unsafe" not in CONTENT_SECURITY_POLICY and "*" not in CONTENT_SECURITY_POLICY


def test_an_unchanged_file_is_not_sent_again_and_travels_compressed(page: TestClient) -> None:
    first = page.get("/web/app.js", headers={"accept-encoding": "gzip"})
    assert first.headers["content-encoding"] == "gzip" and first.text == SOURCES["app.js"]
    again = page.get("/web/app.js", headers={"if-none-match": first.headers["etag"]})
    assert again.status_code == 304 and again.content == b""
    assert "content-security-policy" in again.headers
    plain = page.get("/web/app.js", headers={"accept-encoding": "identity"})
    assert "content-encoding" not in plain.headers and plain.text == first.text


def test_nothing_but_the_pages_files_is_under_web(page: TestClient) -> None:
    for path in ("/web/", "/web/none.js", "/web/../page.py", "/web/%2e%2e/page.py", "/web/..%2fpage.py"):
        assert page.get(path).status_code == 404, path


@pytest.mark.parametrize("name", SOURCES)
def test_no_file_names_a_resource_elsewhere(name: str) -> None:
    text = re.sub(r"(?m)^\s*//.*$|\s// .*$|/\*.*?\*/", "", SOURCES[name]).replace(NAMESPACE, "")
    assert re.findall(r"https?://[\w.]+|//[\w-]+\.\w+|@import|url\((?!#)", text) == []


def test_the_page_has_no_inline_script_style_or_handler() -> None:
    html = SOURCES["index.html"]
    assert re.findall(r"<script(?![^>]* src=)[^>]*>|<style|\sstyle=|\son\w+=|javascript:", html) == []
    for name, text in SCRIPTS.items():
        found = re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text)
        assert found == [], f"{name} turns text into markup or code"


def test_scripts_import_only_each_other() -> None:
    for name, text in SCRIPTS.items():
        for source in re.findall(r"from \"(.*?)\"", text):
            assert source.removeprefix("./") in SCRIPTS, f"{name} imports {source}"


def test_every_element_and_text_that_scripts_name_exists() -> None:
    html = SOURCES["index.html"]
    ids = re.findall(r"\bid=\"(.*?)\"", html)
    assert len(ids) == len(set(ids))
    named = {found for text in SCRIPTS.values() for found in re.findall(r"(?:\$|clone)\(\"([\w-]+)\"\)", text)}
    assert named <= set(ids)
    assert set(re.findall(r"href=\"#(.*?)\"", html)) <= set(ids)
    words = set(keys_of("en"))
    used = {found for text in SCRIPTS.values() for found in re.findall(r"\b(?:w|words|words\(\))\.(\w+)\b(?!\")", text)}
    used |= set(re.findall(r"data-(?:t|label|hint)=\"(.*?)\"", html))
    assert used <= words
    states = {"ready", "starting", "down", "unreachable", "unavailable", "full", "damaged"}  # named by their value
    assert words - used <= states, "texts that nothing shows"


def keys_of(language: str) -> list[str]:
    block = re.search(rf"\b{language}: \{{(.*?)\n  \}},", SOURCES["words.js"], re.S)
    assert block
    return re.findall(r"(?:^|[{,])\s*(\w+): \"", block[1])


def test_both_languages_have_the_same_texts_with_the_same_gaps() -> None:
    english, japanese = keys_of("en"), keys_of("ja")
    assert english == japanese and len(english) == len(set(english)) > 50
    texts = {language: re.findall(r": \"(.*?)\"(?=[,\s])", block) for language, block in blocks().items()}
    gaps = {language: [sorted(re.findall(r"\{\w+\}", text)) for text in found] for language, found in texts.items()}
    assert gaps["en"] == gaps["ja"]


def blocks() -> dict[str, str]:
    found = re.findall(r"\n  (en|ja): \{(.*?)\n  \},", SOURCES["words.js"], re.S)
    return dict(found)


def test_every_file_says_what_it_is_and_the_page_is_small() -> None:
    for name, text in SCRIPTS.items():
        assert text.startswith("// ") and len(text.splitlines()) <= 400, name
    sent = sum(len(gzip.compress(text.encode())) for text in SOURCES.values())
    assert sent < 36_000, "what a browser fetches for the whole page, in bytes"


def test_the_api_is_described_without_a_script_or_a_request_elsewhere() -> None:
    app = FastAPI(title="<b>hostile</b>", version="1", docs_url=None, redoc_url=None)

    @app.post("/v1/<thing>")
    def thing(size: int) -> dict[str, int]:
        """Makes <script>alert(1)</script>."""
        return {"size": size}

    add_api_docs(app)
    reply = TestClient(app).get("/docs")
    assert "script-src" not in reply.headers["content-security-policy"] and "default-src 'none'" in str(reply.headers)
    assert "<script" not in reply.text and "<b>" not in reply.text and "://" not in reply.text
    assert "POST /v1/&lt;thing&gt;" in reply.text and "&lt;script&gt;" in reply.text and "size" in reply.text
