"""What each KV level costs one model: size, error, and how far its next tokens move.

Owns the report and its file in the store, one per model fingerprint, checksummed. Measuring is
`level_trial.py`'s.
"""

import hashlib
import json
import logging
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from centroidkv.bounds import plain_json, read_bounded
from centroidkv.files import set_aside, write_atomic

_log = logging.getLogger("centroidkv")

FOLDER = "codec-reports"
FORMAT = 1
_MOST_BYTES = 1 << 20
MOST_KL = 0.01

__all__ = ["MOST_KL", "CodecReport", "LevelFigures", "read_report", "read_reports", "save_report"]


@dataclass(frozen=True, slots=True)
class LevelFigures:
    """One level on one model.

    `bytes_per_token` are those of block files, all overheads in; `ratio_to_bf16` and
    `ratio_to_raw` are how many times smaller that is than the numbers in bfloat16, and than files
    of level raw. Errors are relative root mean squares. KL is that from the distributions behind
    raw KV to those behind the level's, in nats; `top1_agreement` the share of tokens whose
    likeliest successor is the same. `decode_tokens_per_s` was timed on the machine that measured.
    """

    level: str
    bytes_per_token: float
    ratio_to_bf16: float
    ratio_to_raw: float
    key_error: float
    value_error: float
    mean_kl: float
    p95_kl: float
    top1_agreement: float
    decode_tokens_per_s: float
    is_approved: bool


@dataclass(frozen=True, slots=True)
class CodecReport:
    """The levels on one model, over `num_positions` next tokens of `num_prompts` prompts.

    A token's KV has `numbers_per_token`. `most_kl` is the mean KL up to which a level was
    approved; `coding` names the version of the codec that was measured: another one codes
    otherwise, and has to be measured again.
    """

    model: str
    coding: str
    most_kl: float
    num_prompts: int
    prompt_tokens: int
    num_positions: int
    numbers_per_token: int
    levels: tuple[LevelFigures, ...]

    def approves(self, level: str) -> bool:
        """Tell whether a level may be used; raw always may."""
        return level == "raw" or any(f.is_approved for f in self.levels if f.level == level)


def save_report(folder: Path, report: CodecReport) -> None:
    """Keep a report in a store folder, instead of an earlier one; a damaged one is set aside."""
    text = json.dumps(asdict(report), sort_keys=True)
    kept = {"format": FORMAT, "sha256": _digest(text), "report": json.loads(text)}
    path = _path(folder, report.model)
    if not list(_readable([path] if path.exists() else [])):
        set_aside(path, folder / "quarantine")
    write_atomic(path, json.dumps(kept, indent=1).encode())


def read_report(folder: Path, model: str, *, coding: str) -> CodecReport | None:
    """Return the report on a model and a version of the codec; None if there is no sound one."""
    path = _path(folder, model)
    found = next(iter(_readable([path])), None) if path.exists() else None
    return found if found and (found.model, found.coding) == (model, coding) else None


def read_reports(folder: Path) -> list[CodecReport]:
    """Return all sound reports of a store folder."""
    return list(_readable(sorted((folder / FOLDER).glob("*.json"))))


def _readable(paths: Iterable[Path]) -> Iterable[CodecReport]:
    for path in paths:
        try:
            yield _parsed(read_bounded(path, _MOST_BYTES))
        except (OSError, ValueError, KeyError, TypeError) as error:
            _log.warning("%s cannot be read (%s); measure again", path, error)


def _parsed(raw: bytes) -> CodecReport:
    kept: dict[str, Any] = plain_json(raw)
    if kept["format"] != FORMAT:
        raise ValueError(f"format {kept['format']!r}")
    row = kept["report"]
    if _digest(json.dumps(row, sort_keys=True)) != kept["sha256"]:
        raise ValueError("the checksum does not fit")
    return CodecReport(**{**row, "levels": tuple(LevelFigures(**f) for f in row["levels"])})


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _path(folder: Path, model: str) -> Path:
    return folder / FOLDER / f"{model[:32]}.json"
