"""How engines behave: validated, frozen settings."""

import hashlib
import hmac
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any, Literal, Self

from centroidkv.decoding import Sampling, SamplingOptions
from centroidkv.observing import require_observing
from centroidkv.remote_settings import RemoteSettings
from centroidkv.secret_keys import secret_bytes
from centroidkv.server_address import address_of
from centroidkv.settings import Settings, is_count, is_date, is_number, require
from centroidkv.types import Reuse

__all__ = ["EngineConfig", "Sampling", "SamplingOptions"]

MIB = 1 << 20
GIB = 1 << 30


# Named settings. `paper`: the system of the source paper as published, Algorithm 1 without labels.
# `cag`: the system it is compared with, one context for all questions (Chan et al., 2025).
_PRESETS: dict[str, dict[str, Any]] = {
    "paper": {"reuse": "representative", "representative_form": "continue", "max_error": None},
    "cag": {"pins_by": "nearest"},
}


@dataclass(frozen=True, slots=True)
class EngineConfig(Settings):
    """Budgets, isolation and behaviour of one engine. Budgets are in bytes.

    `template_date` is what a chat template that prints the date prints: an ISO date, the same
    one every day so that prompts begin alike, or `today`, which loses every prefix at midnight.
    `drafts` lets earlier answers be guessed from; the model verifies every guess. `draft_model`
    is a small model of the same tokenizer that guesses where they have less to offer: a name,
    folder, hub id or loaded model. `bitwise` makes logits equal to the bit with reuse on and off;
    it reuses less, and leaves drafts out.

    `device_map` places the parts of a model on several devices, instead of `device`, and
    `quantization` is one of transformers' quantisation configs or its fields; both go to
    transformers as they are. `quantization="int8"` makes the linear layers int8 on a CPU.

    `reuse` is what requests use that do not say so themselves. For `representative`,
    `representative_form` says what a hit takes from the cluster's representative: its stored
    answer, its KV to decode from, or its KV with the new question appended; `max_error` is the
    calibrated bound of wrong answers, None for none.

    `pins_by="found"` lends a question the pins of whichever cluster spares most of what was
    retrieved, up to the last pin that does; `nearest` always gives all pins of the nearest
    cluster. `carry_cost` is what a pinned token costs by standing in the prompt, as a part of
    computing one: higher makes shorter prompts, of which more is computed. `repeat_best` puts the
    passage found first once more behind all others, next to the question. `keep_versions` is how
    many plan versions are kept besides those that serve.

    So many questions that no cluster admits as `near_misses` says found a new one, when they lie
    within `online_radius`, while the plan has fewer than `max_clusters` in all. A build may make
    more than these; such a plan does not grow.

    `max_running` requests are computed at the same time, in shared forwards; up to `max_waiting`
    more wait for them to end, and one beyond these is refused with `QueueFull`. With
    `max_running=1` requests take turns, and each holds its prefix for itself.

    `kv_precision` is how exactly KV is kept: `raw`, or a level such as `q8` that the model's codec
    report approves, or several joined by `+`, finest first. KV of one is never found by another.

    With `reuse="blend"`, `blend_share` of the tokens of placed passages are computed again; "auto"
    takes as many as it needs. `passage_marker` is a text that stands before each passage and
    behind the last one, for prompts without a retriever wrapper. `blend_learns` computes passages
    that were not seen before behind the answer, so that the next prompt finds them.

    `eviction` says which blocks leave first when a budget is reached: those least recently used
    (`lru`), least often (`lfu`), or least worth for what computing them again would cost (`cost`).
    `remote` is a third tier behind memory and disk, shared with other machines: a URL or the
    fields of `RemoteSettings`. `ttft_objective_s` is the time to the first token that loading aims
    at: of the levels that meet it, the finest is loaded; None for as soon as possible.

    `ttl_s` lets go of what this tenant did not store or ask again for so many seconds; None keeps
    it. `redact` masks what is personal in a text before it is stored: a function such as
    `mask_personal`. Of a prompt that it changes, KV is kept only up to the question.
    `tenant_secret`, known to the server alone, makes ids of tenants that nobody can derive from
    their names: 32 bytes in base64, or `env:NAME`. With another one, nothing stored is found.

    `encryption_key` encrypts what a new store holds, and opens it again: like `tenant_secret`, 32
    bytes in base64 or `env:NAME`. Centroids are then searched in memory, unless `chroma` names a
    server, and a `remote` without a key of its own is sealed with this one.

    `chroma` is the URL of a Chroma server, with credentials and a path if it has such, or
    `env:NAME` of a variable that holds it.

    `metrics` collects Prometheus metrics; a port number also serves them on 127.0.0.1. `traces`
    makes OpenTelemetry spans, by the global tracer provider or one that is given. `json_logs`
    writes a line for each request to the logger `centroidkv.requests`, or to the file named.
    """

    memory_budget_bytes: int = GIB
    disk_budget_bytes: int = 20 * GIB
    tenant: str = ""
    chroma: str | None = field(default=None, repr=False)  # may hold a password
    device: str | None = None
    dtype: str | None = None
    device_map: str | Mapping[str, Any] | None = None
    quantization: Any = None
    template_date: str = "2025-01-01"
    max_records: int = 256
    near_misses: int = 3
    max_clusters: int = 20_000
    online_radius: float = 0.75
    fit_after: int = 200
    max_pins: int = 8
    keep_versions: int = 3
    read_only: bool = False
    drafts: bool = True
    bitwise: bool = False
    draft_model: Any = None
    preset: str | None = None
    reuse: Reuse = "exact"
    representative_form: Literal["answer", "continue", "append"] = "continue"
    max_error: float | None = None
    pins_by: Literal["found", "nearest"] = "found"
    carry_cost: float = 0.05
    repeat_best: bool = False
    max_running: int = 16
    max_waiting: int = 64
    kv_precision: str = "raw"
    blend_share: float | Literal["auto"] = 0.15
    passage_marker: str | None = None
    blend_learns: bool = True
    ttft_objective_s: float | None = None
    eviction: str = "lru"
    remote: str | Mapping[str, Any] | RemoteSettings | None = None
    ttl_s: float | None = None
    redact: Callable[[str], str] | None = None
    tenant_secret: str | None = field(default=None, repr=False)
    encryption_key: str | None = field(default=None, repr=False)
    metrics: bool | int = False
    traces: Any = False
    json_logs: bool | str | Path = False

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Self:
        named = _PRESETS.get(str(settings.get("preset")), {})
        return super(EngineConfig, cls).of({**named, **settings})

    def __post_init__(self) -> None:
        for name in ("memory_budget_bytes", "disk_budget_bytes"):
            value = getattr(self, name)
            require(
                is_count(value, 0), f"{name} must be a number of bytes (0 or more), not {value!r}"
            )
        counts = ("max_records", "near_misses", "max_clusters", "fit_after", "max_pins")
        for name in (*counts, "keep_versions"):
            value = getattr(self, name)
            require(
                is_count(value, 1), f"{name} must be a whole number of at least 1, not {value!r}"
            )
        require(
            is_number(self.online_radius) and 0 < self.online_radius < 2,
            f"online_radius must be a number in (0, 2), not {self.online_radius!r}",
        )
        require(isinstance(self.tenant, str), f"tenant must be a string, not {self.tenant!r}")
        if self.chroma is not None:
            address_of(self.chroma)
        require(
            self.template_date == "today" or is_date(self.template_date),
            f"template_date must be a date as 2025-01-31, or 'today', not {self.template_date!r}",
        )
        require(
            self.preset is None or self.preset in _PRESETS,
            f"preset must be one of {', '.join(_PRESETS)}, or None, not {self.preset!r}",
        )
        forms = ("answer", "continue", "append")
        require(
            self.representative_form in forms,
            f"representative_form must be one of {', '.join(forms)}, "
            f"not {self.representative_form!r}",
        )
        require(
            self.max_error is None or (is_number(self.max_error) and 0 < self.max_error < 1),
            f"max_error must be a number in (0, 1), or None, not {self.max_error!r}",
        )
        self._check_drafts()
        self._check_pins()
        self._check_loading()

    def _check_privacy(self) -> None:
        require(
            self.ttl_s is None or (is_number(self.ttl_s) and self.ttl_s > 0),
            f"ttl_s must be a number of seconds above 0, or None, not {self.ttl_s!r}",
        )
        require(
            self.redact is None or callable(self.redact),
            f"redact must be a function from text to text, or None, not {self.redact!r}",
        )
        secret_bytes(self.tenant_secret, "tenant_secret")
        secret_bytes(self.encryption_key, "encryption_key")

    @property
    def encryption_key_bytes(self) -> bytes | None:
        """The key that stores are opened with, None for none.

        Raises:
            ConfigError: There is no such variable, or it is no key.
        """
        return secret_bytes(self.encryption_key, "encryption_key")

    @property
    def tenant_key(self) -> str:
        """What stands for the tenant in ids: its name, or with a secret an HMAC-SHA256 of it."""
        secret = secret_bytes(self.tenant_secret, "tenant_secret")
        if secret is None:
            return self.tenant
        return hmac.new(secret, self.tenant.encode("utf-8", "replace"), hashlib.sha256).hexdigest()

    def _check_tiers(self) -> None:
        require(
            self.eviction in ("lru", "lfu", "cost"),
            f"eviction must be 'lru', 'lfu' or 'cost', not {self.eviction!r}",
        )
        if self.remote is not None:
            object.__setattr__(self, "remote", RemoteSettings.given(self.remote))

    def _check_drafts(self) -> None:
        require(
            self.drafts or self.draft_model is None,
            "draft_model guesses tokens, which drafts=False switches off; leave one of them out",
        )
        require(
            not self.bitwise or self.draft_model is None,
            "draft_model guesses tokens, which bitwise=True leaves out; leave one of them out",
        )

    def _check_precision(self) -> None:
        require(
            isinstance(self.kv_precision, str) and all(self.kv_precision.split("+")),
            "kv_precision must be a level such as 'q8', or several joined by +, finest first, "
            f"not {self.kv_precision!r}",
        )
        require(
            not self.bitwise or self.kv_precision == "raw",
            f"bitwise=True needs KV as it was computed, which kv_precision={self.kv_precision!r} "
            "does not keep; leave one of them out",
        )

    def _check_queue(self) -> None:
        for name, least in (("max_running", 1), ("max_waiting", 0)):
            value = getattr(self, name)
            require(
                is_count(value, least),
                f"{name} must be a whole number of at least {least}, not {value!r}",
            )
        objective_s = self.ttft_objective_s
        require(
            objective_s is None or (is_number(objective_s) and objective_s > 0),
            f"ttft_objective_s must be a number of seconds above 0, or None, not {objective_s!r}",
        )

    def _check_pins(self) -> None:
        require(
            self.pins_by in ("found", "nearest"),
            f"pins_by must be 'found' or 'nearest', not {self.pins_by!r}",
        )
        require(
            is_number(self.carry_cost) and 0 <= self.carry_cost < 1,
            f"carry_cost must be a number in [0, 1), not {self.carry_cost!r}",
        )
        self._check_queue()

    def _check_blend(self) -> None:
        share, marker = self.blend_share, self.passage_marker
        require(
            share == "auto" or (is_number(share) and 0 <= float(share) <= 1),
            f"blend_share must be a number in [0, 1], or 'auto', not {share!r}",
        )
        require(
            marker is None or (isinstance(marker, str) and marker.strip()),
            f"passage_marker must be a text that is not blank, or None, not {marker!r}",
        )
        require(
            self.reuse != "blend" or not self.bitwise,
            "reuse='blend' changes logits, which bitwise=True rules out; leave one of them out",
        )

    def _check_loading(self) -> None:
        require(
            self.device is None or self.device_map is None,
            "device and device_map exclude each other; give one of them",
        )
        require(
            self.device_map is None or isinstance(self.device_map, str | Mapping),
            f"device_map must be a word such as 'auto' or a mapping, not {self.device_map!r}",
        )
        known = self.quantization
        require(
            known in (None, "int8") or isinstance(known, Mapping) or hasattr(known, "to_dict"),
            f"quantization must be 'int8', one of transformers' quantisation configs or a dict of "
            f"its fields, not {known!r}",
        )
        self._check_precision()
        self._check_blend()
        self._check_tiers()
        self._check_privacy()
        require_observing(self.metrics, self.traces, self.json_logs)

    def plan_settings(self, context_tokens: int) -> dict[str, Any]:
        """What a build takes unless it is told otherwise, for a model with so much context."""
        if self.preset == "paper":
            return {"clustering": "spectral", "num_clusters": 8, "pca_dim": 32}
        if self.preset == "cag":
            # The last quarter is for what else was found, the question and the answer.
            most = max(1, context_tokens * 3 // 4)
            everyone = {"num_clusters": 1, "radius_quantile": None}
            return {**everyone, "max_pins": most, "max_pin_tokens": most}
        return {}

    @property
    def pinned_date(self) -> date | None:
        """What chat templates take for today; None for the real date."""
        return None if self.template_date == "today" else date.fromisoformat(self.template_date)

    @property
    def arena_budget_bytes(self) -> int:
        """The part of the memory budget that idle arenas may take."""
        return self.memory_budget_bytes // 4

    @property
    def draft_arena_budget_bytes(self) -> int:
        """The part of the memory budget that idle arenas of the draft model may take."""
        return self.memory_budget_bytes // 8 if self.draft_model is not None else 0
