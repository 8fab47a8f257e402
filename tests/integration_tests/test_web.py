"""The web page, used as a customer uses it: in a real browser, against the real models."""

import itertools
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import bank
import pytest
from playwright.sync_api import Page, sync_playwright

CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"
# Names other than the page's own lead nowhere, so nothing can leave unseen.
FLAGS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
]
FIRST = "I lost my credit card, what should I do?"
AGAIN = "My card was stolen. Which number do I call?"
KOREAN = "카드를 잃어버렸어요. <b>어떻게</b> 정지하나요? ($5 & $10)"
HANGUL = "카드를잃어버렸요떻게정지하나"
SCREENSHOT = os.environ.get("CENTROIDKV_SCREENSHOT")

# Notes every address that the program connects to or asks for.
WATCH = """
import os, sys
def watch(event, args):
    if event in ("socket.connect", "socket.getaddrinfo"):
        address = args[1] if event == "socket.connect" else args[0]
        with open(os.environ["WATCH_LOG"], "a") as log:
            log.write(repr(address) + "\\n")
sys.addaudithook(watch)
"""


# Keeps every text that each answer had, in order, from one paint of the page to the next.
NOTE_TEXTS = """() => {
    window.texts = {};
    new MutationObserver(() => {
        const said = [...document.querySelectorAll('#talk [data-testid=bot]')];
        const texts = (window.texts[said.length] ??= []);
        if (said.length && texts.at(-1) !== said.at(-1).innerText)
            texts.push(said.at(-1).innerText);
    }).observe(document, { subtree: true, childList: true, characterData: true });
}"""


@dataclass
class Look:
    """What stood on the page after one question, and the texts seen while it was answered."""

    question: str
    answer: str
    figures: dict[str, str]
    growth: list[str] = field(default_factory=list)
    shapes: list[str] = field(default_factory=list)
    notice: str = ""


@dataclass
class Visit:
    """Everything one visitor did and saw."""

    looks: dict[str, Look]
    hosts: set[str]
    complaints: list[str]
    connections: list[str]


@pytest.fixture(scope="module")
def chromium() -> str:
    if Path(CHROMIUM).exists():
        return CHROMIUM
    if os.environ.get("CENTROIDKV_REQUIRE_BROWSER") == "1":
        pytest.fail("there is no chromium, and CENTROIDKV_REQUIRE_BROWSER=1 requires it")
    pytest.skip("there is no chromium on this machine")


@pytest.fixture(scope="module")
def address(chromium: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """Start the program over a small store of its own; yield its address and its watch log."""
    folder = tmp_path_factory.mktemp("web")
    (folder / "sitecustomize.py").write_text(WATCH)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    options = ["--port", port, "--no-browser"]
    if not SCREENSHOT:  # a picture is taken of the whole bank, over the store of `make demo`
        options += ["--store", folder / "store"]
        options += ["--clusters", 2, "--questions", 60, "--max-tokens", 24]
    # The proxy is not there: a program that goes through it does not come up.
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "all_proxy"), "http://127.0.0.1:9")
    paths = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
    env = {**os.environ, **nowhere, "PYTHONPATH": paths, "WATCH_LOG": str(folder / "watch.log")}
    program = Path(bank.__file__).with_name("web.py")
    with (folder / "out.log").open("w") as out:
        running = subprocess.Popen(
            [sys.executable, str(program), *map(str, options)],
            stdout=out,
            stderr=out,
            env=env,
            # Tests that a shell runs in the background ignore Ctrl-C; their program must not.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        try:
            wait_until_open(running, folder / "out.log")
            yield f"http://127.0.0.1:{port}/", folder / "watch.log"
        finally:
            running.send_signal(signal.SIGINT)
            running.wait(30)


def wait_until_open(running: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 500
    while "The bank is open" not in log.read_text():
        assert running.poll() is None, log.read_text()[-3000:]
        assert time.monotonic() < deadline, log.read_text()[-3000:]
        time.sleep(0.2)


@pytest.fixture(scope="module")
def visit(
    chromium: str, address: tuple[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Visit:
    url, watch = address
    hosts: set[str] = set()
    complaints: list[str] = []
    with sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            tmp_path_factory.mktemp("profile"),
            executable_path=chromium,
            args=FLAGS,
            viewport={"width": 1280, "height": 800},
        )
        context.on("request", lambda request: hosts.add(urlsplit(request.url).netloc))
        page = context.pages[0]
        page.on("websocket", lambda opened: hosts.add(urlsplit(opened.url).netloc))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda m: complaints.append(m.text) if m.type == "error" else None)
        page.goto(url)
        page.evaluate(NOTE_TEXTS)
        looks = converse(page)
        context.close()
    hosts = {host for host in hosts if host}  # data: and blob: addresses have none
    return Visit(looks, hosts - {urlsplit(url).netloc}, complaints, watch.read_text().splitlines())


def converse(page: Page) -> dict[str, Look]:
    looks = {"first": ask(page, FIRST)}
    page.get_by_label("Reuse KV").uncheck()
    looks["off"] = ask(page, AGAIN)
    page.get_by_label("Reuse KV").check()
    looks["again"] = ask(page, AGAIN)
    if SCREENSHOT:
        page.screenshot(path=SCREENSHOT)
    looks["korean"] = ask(page, KOREAN)
    looks["korean"].shapes = shapes_of(page, HANGUL)
    looks["empty"] = refused(page, "   ")
    looks["long"] = refused(page, "Why? " * 300)
    return looks


def ask(page: Page, question: str) -> Look:
    """Send a question and wait until the panel counts one answer more."""
    number = counted(page) + 1
    send(page, question)
    deadline = time.monotonic() + 60
    while counted(page) != number:
        assert time.monotonic() < deadline, page.inner_text("#panel")
        page.wait_for_timeout(50)
    growth = page.evaluate("window.texts")[str(number)]
    asked = page.locator("#talk [data-testid=user]").last.inner_text()
    answer = page.locator("#talk [data-testid=bot]").last.inner_text()
    return Look(asked, answer, figures(page), [text for text in growth if text != "…"])


def counted(page: Page) -> int:
    """Return the number of the latest answer that the panel shows; 0 while one is under way."""
    numbers = page.locator("#panel td:first-child").all_text_contents()
    return int(numbers[-1]) if numbers else 0


def send(page: Page, question: str) -> None:
    page.get_by_placeholder("Type a question").fill(question)
    page.get_by_placeholder("Type a question").press("Enter")


def refused(page: Page, question: str) -> Look:
    """Send what cannot be asked, and note what the page says about it."""
    before = page.locator("#talk [data-testid=user]").count()
    already = page.locator("[role=alert]").all_inner_texts()
    send(page, question)
    page.wait_for_function(
        "old => { const now = document.querySelector('[role=alert]');"
        " return now && !old.includes(now.innerText) }",
        arg=already,
    )
    assert page.locator("#talk [data-testid=user]").count() == before
    return Look(question, "", {}, notice=page.locator("[role=alert]").inner_text())


def figures(page: Page) -> dict[str, str]:
    cells = page.locator("#panel [data-figure]").all()
    return {str(c.get_attribute("data-figure")): c.inner_text() for c in cells}


def shapes_of(page: Page, text: str) -> list[str]:
    """Draw each letter in the font of the conversation; boxes for missing ones look alike."""
    return page.evaluate(
        """letters => letters.map(letter => {
            const canvas = document.createElement('canvas');
            const said = document.querySelector('#talk [data-testid=user] .md');
            const pen = canvas.getContext('2d');
            pen.font = '40px ' + getComputedStyle(said).fontFamily;
            pen.fillText(letter, 10, 60);
            return canvas.toDataURL();
        })""",
        list(text),
    )


def number(text: str) -> int:
    plain = text.replace(",", "").removesuffix(" ms")
    if plain.endswith(" s"):  # on a busy machine
        return round(1000 * float(plain.removesuffix(" s")))
    return int(plain)


def test_the_answer_streams(visit: Visit) -> None:
    growth = visit.looks["first"].growth
    assert len(growth) >= 3
    assert all(late.startswith(early.rstrip()) for early, late in itertools.pairwise(growth))
    assert visit.looks["first"].answer == growth[-1]


def test_the_panel_tells_what_happened(visit: Visit) -> None:
    look = visit.looks["first"]
    assert set(look.figures) >= {"outcome", "reason", "ttft", "total", "reused", "computed"}
    assert look.figures["cluster"].isdigit()
    assert 0 < number(look.figures["ttft"]) < number(look.figures["total"])
    assert number(look.figures["computed"]) > 0


def test_a_paraphrase_reuses_the_kv_of_its_cluster(visit: Visit) -> None:
    first, again = visit.looks["first"].figures, visit.looks["again"].figures
    assert again["cluster"] == first["cluster"]
    assert again["outcome"] in ("Hit", "Partial")
    assert again["reason"] in ("pinned_prefix", "extra_passages")
    assert number(again["reused"]) > number(again["computed"])


def test_switched_off_it_computes_everything_and_answers_the_same(visit: Visit) -> None:
    on, off = visit.looks["again"], visit.looks["off"]
    assert off.figures["outcome"] == "Bypass"
    assert number(off.figures["reused"]) == 0
    assert number(off.figures["computed"]) == sum(
        number(on.figures[name]) for name in ("reused", "computed")
    )
    assert off.answer == on.answer != ""


def test_a_korean_question_is_shown_as_it_was_typed(visit: Visit) -> None:
    look = visit.looks["korean"]
    assert look.question == KOREAN
    if len(set(look.shapes)) == 1 and os.environ.get("CENTROIDKV_REQUIRE_BROWSER") != "1":
        pytest.skip("there is no Korean font on this machine")
    assert len(set(look.shapes)) == len(HANGUL)


def test_what_cannot_be_asked_is_refused_in_one_line(visit: Visit) -> None:
    assert visit.looks["empty"].notice == "Please type a question."
    assert visit.looks["long"].notice == (
        "The question has 1,500 characters; please keep it under 1,000."
    )


def test_nothing_leaves_the_machine(visit: Visit) -> None:
    assert visit.hosts == set()
    assert visit.connections
    away = [c for c in visit.connections if not re.search(r"127\.0\.0\.1|localhost|::1|^'/", c)]
    assert away == []


def test_the_browser_has_no_complaints(visit: Visit) -> None:
    assert visit.complaints == []
