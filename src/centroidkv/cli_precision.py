"""The command line on KV precision: what the levels cost a model, and what a store will take."""

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeAlias

from centroidkv.cli_versions import Console
from centroidkv.errors import ConfigError
from centroidkv.files import read_text
from centroidkv.precision.codec_report import MOST_KL, CodecReport
from centroidkv.preparing.estimate import GB, Estimate, LevelEstimate, estimate_model
from centroidkv.settings import require

EXAMPLES = """  centroidkv codec-report --store ./kv-store
  centroidkv estimate --model bundled:smollm2 --clusters 200 --tokens 1000 --measure
"""

Command: TypeAlias = Callable[..., argparse.ArgumentParser]

__all__ = ["EXAMPLES", "levels_table", "register"]


def register(command: Command, console: Console) -> None:
    """Add the commands to the parser that `command` makes parsers of."""
    first, second = [line.strip() for line in EXAMPLES.splitlines()]

    def run(of: Any) -> Any:
        return lambda options: of(console, options)

    report = command("codec-report", run(_report), "measure what each KV level costs", first)
    report.add_argument(
        "--prompts", type=Path, help="one a line, text or JSON; default: the plan's"
    )
    report.add_argument("--most-kl", type=float, default=MOST_KL, help="bar; default: %(default)s")
    report.add_argument("--num-tokens", type=int, default=48, help="compared; default: %(default)s")
    console.add_model(report)
    text = "say what a store will take and spare, before it is built"
    sizes = command("estimate", run(_estimate), text, second, needs_store=False)
    sizes.add_argument("--model", default="bundled:smollm2", help="default: %(default)s")
    sizes.add_argument("--dtype", help="torch dtype of the KV; default: as it would be loaded")
    sizes.add_argument("--clusters", type=int, required=True, help="clusters of the store")
    sizes.add_argument("--tokens", type=int, required=True, help="tokens of a cluster's prefix")
    speed = sizes.add_mutually_exclusive_group()
    speed.add_argument("--prefill-tokens-per-s", type=float, help="prefill speed, if known")
    speed.add_argument("--measure", action="store_true", help="load the model and time its prefill")


def _report(console: Console, options: argparse.Namespace) -> int:
    # Read before the model is loaded, which takes longer than a typing error should.
    prompts = _prompts(options.prompts) if options.prompts else None
    with console.open_engine(options) as engine:
        report = engine.codec_report(
            prompts,
            most_kl=options.most_kl,
            num_tokens=options.num_tokens,
            show_progress=not options.json,
        )
    console.show(options, asdict(report), levels_table(report))
    return 0


def _prompts(path: Path) -> list[str]:
    prompts = [_prompt(path, line) for line in read_text(path).splitlines() if line.strip()]
    require(prompts, f"{path} holds no prompts; write one a line")
    return prompts


def _prompt(path: Path, line: str) -> str:
    """Return a line, or the text that it is JSON of, where line breaks can stand."""
    if not line.startswith('"'):
        return line
    try:
        return str(json.loads(line))
    except ValueError as error:
        raise ConfigError(f"{path}: {line[:60]!r} begins as JSON and is not ({error})") from error


def levels_table(report: CodecReport) -> str:
    """Return a report as a table."""
    head = ("level", "bytes/token", "of bf16", "K error", "V error", "KL", "KL p95", "top 1", "")
    rows = [
        (
            f.level,
            f"{f.bytes_per_token:,.0f}",
            f"1/{f.ratio_to_bf16:.2f}",
            f"{f.key_error:.4f}",
            f"{f.value_error:.4f}",
            f"{f.mean_kl:.5f}",
            f"{f.p95_kl:.5f}",
            f"{f.top1_agreement:.3f}",
            "approved" if f.is_approved else "refused",
        )
        for f in report.levels
    ]
    about = (
        f"model {report.model[:16]}: {report.num_positions} next tokens of {report.num_prompts} "
        f"prompts, {report.prompt_tokens} tokens; approved up to a mean KL of {report.most_kl:g}"
    )
    return "\n".join([about, *_aligned([head, *rows])])


def _estimate(console: Console, options: argparse.Namespace) -> int:
    found = estimate_model(
        options.model,
        num_clusters=options.clusters,
        num_tokens=options.tokens,
        dtype=options.dtype,
        prefill_tokens_per_s=options.prefill_tokens_per_s,
        measure=options.measure,
        store=options.store,
    )
    console.show(options, asdict(found), _estimate_table(found))
    return 0


def _estimate_table(found: Estimate) -> str:
    about = (
        f"{found.num_clusters:,} clusters of {found.num_tokens:,} tokens; KV of a token: "
        f"{found.kv_bytes_per_token:,} bytes in {found.dtype}; sizes of coded levels are "
        f"{found.sizes_are}"
    )
    timings = [f"prefill, {p.num_tokens} tokens: {p.tokens_per_s:,.0f}/s" for p in found.prefill]
    lines = [about, *timings]
    tiers = list(found.latencies_s)
    head = ("level", "bytes/token", "store GB")
    timed = ("saved s/GB", *(f"{t} MB/s" for t in tiers)) if found.prefill_tokens_per_s else ()
    lines += _aligned([(*head, *timed), *(_row(level) for level in found.levels)])
    if not timed:
        return "\n".join([*lines, "for times: --prefill-tokens-per-s X, or --measure"])
    waits = ", ".join(f"{t} {s * 1000:g} ms" for t, s in found.latencies_s.items())
    lines.append(
        f"MB/s: from there on, loading beats computing. First byte after (typical): {waits}"
    )
    return "\n".join(lines)


def _row(level: LevelEstimate) -> tuple[str, ...]:
    sizes = (level.level, f"{level.bytes_per_token:,.0f}", f"{level.store_bytes / GB:,.2f}")
    if level.break_even is None:
        return sizes
    bars = ("never" if b is None else f"{b / 1e6:,.1f}" for b in level.break_even.values())
    return (*sizes, f"{level.saved_s_per_gb:,.0f}", *bars)


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w)
            for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
