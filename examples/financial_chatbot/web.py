"""Harbour Bank's assistant as a web page, with a panel that shows what was reused.

    python examples/financial_chatbot/web.py                   # or: make chat

Listens on this machine only and needs no network: no analytics, no fonts or scripts of others.
"""

import os
import socket
import sys
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import gradio as gr
import open_bank
import panel
from langchain_chat import BankChain

from centroidkv import Engine
from centroidkv.errors import CentroidKVError
from centroidkv.types import Cluster

HERE = Path(__file__).parent
# System fonts alone. The Korean ones stand before the Latin fall-backs that have no Hangul.
FONTS = (
    "Pretendard",
    "Apple SD Gothic Neo",
    "Malgun Gothic",
    "Noto Sans KR",
    "Noto Sans CJK KR",
    "Segoe UI",
    "Helvetica Neue",
    "Arial",
    "sans-serif",
)
EXAMPLES = (
    "I lost my credit card, what should I do?",
    "What is the interest rate of the savings account?",
    "How do I set up autopay for the full balance of my credit card?",
    "How long does an international wire take?",
)
HEADER = """<div class="brand">{mark}<div><h1>Harbour Bank</h1>
<p>Ask about accounts, cards, transfers, loans and funds</p></div></div>"""
FOOTER = """<p class="small-print">Every question is answered on its own, from the bank's pages, by
a model of 135 million parameters on this machine. It reads English; its answers may be wrong.
Harbour Bank is invented.</p>"""
WELCOME = "### How can we help you today?\nAsk in your own words, or begin with one of these."

Message = dict[str, Any]


class Page:
    """The page of one engine: its parts, and what happens when a question is sent."""

    def __init__(self, engine: Engine, harbour: BankChain) -> None:
        self._engine = engine
        self._harbour = harbour
        with gr.Blocks(
            title="Harbour Bank", analytics_enabled=False, fill_width=True, fill_height=True
        ) as self.blocks:
            self._draw()
            self._wire()

    def _draw(self) -> None:
        mark = (HERE / "harbour.svg").read_text("utf-8")
        gr.HTML(HEADER.format(mark=mark), elem_id="header")
        with gr.Row(elem_id="desk", equal_height=True):
            with gr.Column(scale=7, min_width=320):
                self._draw_conversation()
            with gr.Column(scale=4, min_width=320):
                self._reuse = gr.Checkbox(
                    value=True,
                    elem_id="reuse",
                    label="Reuse KV",
                    info="Off: the same prompt is computed in full, for comparison.",
                )
                self._panel = gr.HTML(panel.idle(), elem_id="panel")
        gr.HTML(FOOTER, elem_id="footer")
        # Kept here, since a question asked during an answer finds only a part of it on the page.
        self._said = gr.State([])
        self._latest = gr.State([])

    def _draw_conversation(self) -> None:
        self._talk = gr.Chatbot(
            elem_id="talk",
            label="Conversation",
            show_label=False,
            height="100%",
            layout="bubble",
            # What is asked and answered is shown as it is: prices are no formulas.
            render_markdown=False,
            latex_delimiters=[],
            buttons=[],
            feedback_options=None,
            placeholder=WELCOME,
            examples=[{"text": text} for text in EXAMPLES],
        )
        self._notice = gr.HTML(elem_id="notice")
        self._question = gr.Textbox(
            elem_id="question",
            label="Your question",
            show_label=False,
            placeholder="Type a question",
            lines=1,
            max_lines=4,
            autofocus=True,
            submit_btn=True,
        )

    def _wire(self) -> None:
        inputs = [self._question, self._reuse, self._said, self._latest]
        shown = [self._question, self._talk, self._notice, self._panel]
        options: dict[str, Any] = {
            "outputs": [*shown, self._said, self._latest],
            "show_progress": "hidden",
            "api_visibility": "private",
            "concurrency_id": "model",  # one question at a time, as in the model
        }
        self._question.submit(self.answer, inputs, **options)
        self._talk.example_select(self.answer_example, inputs, **options)

    def answer_example(
        self,
        _typed: str,
        reuse: bool,  # noqa: FBT001 - Gradio gives values by position
        said: list[Message],
        latest: list[panel.Asked],
        chosen: gr.SelectData,
    ) -> Iterator[dict[Any, Any]]:
        """Answer the example that was clicked."""
        yield from self.answer(chosen.value["text"], reuse, said, latest)

    def answer(
        self,
        question: str,
        reuse: bool,  # noqa: FBT001
        said: list[Message],
        latest: list[panel.Asked],
    ) -> Iterator[dict[Any, Any]]:
        """Yield what changes on the page while a question is answered."""
        problem = open_bank.problem_with(question)
        if problem is not None:
            yield {self._notice: notice(problem)}
            return
        asked = [*said, message("user", question)]
        yield {
            self._question: "",
            self._notice: "",
            self._talk: [*asked, message("assistant", "…")],
            self._panel: panel.waiting(None),
        }
        try:
            for answer in self._harbour.ask(question, reuse=reuse):
                changed: dict[Any, Any] = {
                    self._talk: [*asked, message("assistant", answer.text or "…")],
                    self._panel: panel.waiting(answer),
                }
                if answer.usage:
                    latest = panel.with_latest(latest, answer)
                    changed |= {self._said: changed[self._talk], self._latest: latest}
                    changed[self._panel] = panel.finished(answer, self._cluster(answer), latest)
                yield changed
        except CentroidKVError as error:
            yield {
                self._question: question,
                self._notice: notice(str(error)),
                self._talk: said,
                self._panel: panel.idle(),
            }

    def _cluster(self, answer: open_bank.Answer) -> Cluster | None:
        plan = self._engine.router.plan
        clusters = plan.clusters if plan is not None else ()
        return next((c for c in clusters if c.id == answer.usage["cluster"]), None)


def message(role: str, text: str) -> Message:
    """Return one message of the conversation. Gradio shows its text as HTML."""
    return {"role": role, "content": escape(text, quote=False)}


def notice(text: str) -> str:
    """Return one line that says why there is no answer."""
    return f'<p role="alert">{escape(text)}</p>'


def theme() -> gr.themes.Base:
    """Return the page's look; the rest of it stands in web.css."""
    return gr.themes.Base(
        primary_hue=gr.themes.colors.teal,
        neutral_hue=gr.themes.colors.slate,
        radius_size=gr.themes.sizes.radius_lg,
        font=[gr.themes.Font(name) for name in FONTS],
        font_mono=[gr.themes.Font(name) for name in ("ui-monospace", "Menlo", "monospace")],
    )


def claim(port: int) -> None:
    """Make sure that the page can be reached; leave before the long work if the port is taken."""
    # Gradio looks whether its page answers; a proxy would look on another machine.
    direct = os.environ.get("no_proxy") or os.environ.get("NO_PROXY")
    os.environ["no_proxy"] = f"{direct},127.0.0.1" if direct else "127.0.0.1"
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError:
        sys.exit(f"Port {port} cannot be used; choose another with --port.")


def main() -> None:
    parser = open_bank.arguments(__doc__)
    parser.add_argument("--port", type=int, default=7860, help="%(default)s")
    parser.add_argument("--no-browser", action="store_true", help="do not open the page")
    options = parser.parse_args()
    claim(options.port)
    with open_bank.open_engine(options) as engine:
        harbour = BankChain(engine, max_tokens=options.max_tokens)
        open_bank.prepare(engine, options, retriever=harbour.base, invoke=harbour.chain.invoke)
        page = Page(engine, harbour).blocks
        page.launch(
            server_name="127.0.0.1",
            server_port=options.port,
            share=False,
            inbrowser=not options.no_browser,
            quiet=True,
            footer_links=[],
            ssr_mode=False,
            run_history=False,
            favicon_path=HERE / "harbour.svg",
            theme=theme(),
            css_paths=HERE / "web.css",
            prevent_thread_lock=True,
        )
        print(
            f"The bank is open at http://127.0.0.1:{options.port} (Ctrl-C closes it).", flush=True
        )
        page.block_thread()


if __name__ == "__main__":
    main()
