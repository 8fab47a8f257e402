"""The code blocks of the README and of the guides run as they stand."""

import re
import subprocess
import sys
from pathlib import Path

import bank
import pytest

ROOT = Path(__file__).parents[2]
GUIDES = ["quickstart", "langchain", "llama_index", "kv-precision", "tiers", "privacy",
          "observability", "security"]  # fmt: skip
PAGES = ["README.md", *(f"docs/{guide}.md" for guide in GUIDES)]


def blocks(page: str) -> str:
    text = (ROOT / page).read_text("utf-8")
    return "\n".join(re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL))


@pytest.mark.parametrize("page", PAGES)
def test_code_blocks_run(page: str, tmp_path: Path) -> None:
    code = blocks(page)
    assert "centroidkv" in code
    script = tmp_path / "page.py"
    script.write_text(f"import sys\nsys.path.insert(0, {str(bank.DATA.parent)!r})\n{code}", "utf-8")
    done = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_links_between_pages_lead_somewhere() -> None:
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]
    broken = []
    for page in pages:
        targets = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text("utf-8"))
        broken += [f"{page.name}: {t}" for t in targets if not (page.parent / t).exists()]
    assert broken == []
