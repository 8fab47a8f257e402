"""The remote tier against real servers on this machine: S3 by moto over HTTP, Redis or Valkey.

Two machines are two store folders with one model. CENTROIDKV_REQUIRE_SERVERS=1 makes a missing
server a failure instead of a skip; CENTROIDKV_MOTO_SERVER names moto's command.
"""

import os
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from centroidkv import Engine
from small_parts import HashEmbedder

PROMPT = "Answer from these lines. " + "Cards are blocked by phone, day and night. " * 24
SECRET = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="


def missing(what: str) -> None:
    if os.environ.get("CENTROIDKV_REQUIRE_SERVERS"):
        pytest.fail(f"{what} is not installed")
    pytest.skip(f"{what} is not installed")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def started(command: list[str], port: int, log: Path) -> subprocess.Popen[bytes]:
    """Start a server and wait until it takes connections."""
    with log.open("wb") as output:
        server = subprocess.Popen(command, stdout=output, stderr=output)
    for _ in range(600):
        if server.poll() is not None:
            break
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.1)
        else:
            return server
    server.kill()
    raise AssertionError(log.read_text("utf-8", "replace"))


def stopped(server: subprocess.Popen[bytes]) -> None:
    server.terminate()
    server.wait(20)


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    command = os.environ.get("CENTROIDKV_MOTO_SERVER") or shutil.which("moto_server")
    if command is None or not shutil.which(command):
        missing("moto_server")
    port, folder = free_port(), tmp_path_factory.mktemp("s3")
    server = started([str(command), "-H", "127.0.0.1", "-p", str(port)], port, folder / "log")
    address = f"http://127.0.0.1:{port}"
    try:
        make_bucket(address)
        yield s3_settings(address)
    finally:
        stopped(server)


def make_bucket(address: str) -> None:
    scope = "Credential=test/20250101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0"
    headers = {"Authorization": f"AWS4-HMAC-SHA256 {scope}"}
    bucket = urllib.request.Request(f"{address}/kv-store", b"", headers, method="PUT")
    urllib.request.urlopen(bucket, timeout=30).close()


def s3_settings(address: str) -> dict[str, Any]:
    options = {
        "endpoint": address,
        "region": "us-east-1",
        "access_key_id": "test",
        "secret_access_key": "test",
        "client_options": {"allow_http": True},
    }
    return {"url": "s3://kv-store/shared", "options": options, "timeout_s": 20, "lookup_s": 20}


class Redis:
    """A Redis or Valkey server that can be stopped and started."""

    def __init__(self, folder: Path) -> None:
        found = shutil.which("valkey-server") or shutil.which("redis-server")
        if found is None:
            missing("valkey-server or redis-server")
        self._folder = folder
        self.port = free_port()
        self._command = [str(found), "--port", str(self.port), "--bind", "127.0.0.1",
                         "--save", "", "--dir", str(folder)]  # fmt: skip
        self.start()

    def start(self) -> None:
        self._server = started(self._command, self.port, self._folder / "log")

    def stop(self) -> None:
        stopped(self._server)


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[Redis]:
    server = Redis(tmp_path)
    yield server
    server.stop()


def asked(engine: Engine) -> tuple[str, int, str]:
    completion = engine.generate(PROMPT + "May I block mine?", max_tokens=4)
    usage = completion.usage
    engine.flush()
    return usage.tier, usage.reused_tokens, completion.text


def round_trip(tmp_path: Path, open_engine: Callable[..., Engine], remote: dict[str, Any]) -> None:
    """Another machine's hits come from the remote, then from disk, then from memory."""
    tier, reused, truth = asked(open_engine(tmp_path / "one", remote=remote, max_running=1))
    assert (tier, reused) == ("none", 0)
    two = tmp_path / "two"
    with Engine.open(two, model=new_model(), embedder=HashEmbedder(), remote=remote) as engine:
        tier, reused, text = asked(engine)
        assert (tier, text) == ("remote", truth) and reused >= 512
        stats = engine.stats()
        assert stats.remote is not None and stats.remote.breaker == "closed"
        assert stats.remote.faults == {} and engine.check().is_clean
    with Engine.open(two, model=new_model(), embedder=HashEmbedder(), remote=remote) as engine:
        tier, reused, text = asked(engine)
        assert (tier, text) == ("disk", truth) and reused >= 512
        tier, reused, text = asked(engine)
        assert (tier, text) == ("memory", truth) and reused >= 512


def new_model() -> Any:
    """Return the model of the other fixtures, without what their arenas hold."""
    from centroidkv.models.loading import wrap_model
    from small_parts import make_llama, make_tokenizer

    return wrap_model(make_llama(), make_tokenizer())


def test_s3(tmp_path: Path, open_engine: Callable[..., Engine], s3: dict[str, Any]) -> None:
    round_trip(tmp_path, open_engine, s3)


def test_s3_sealed_under_a_budget(
    tmp_path: Path, open_engine: Callable[..., Engine], s3: dict[str, Any]
) -> None:
    sealed = {**s3, "url": "s3://kv-store/sealed", "key": SECRET, "budget_bytes": 1 << 24}
    round_trip(tmp_path, open_engine, sealed)


def test_s3_without_access(
    tmp_path: Path, open_engine: Callable[..., Engine], s3: dict[str, Any]
) -> None:
    nowhere = {**s3, "url": "s3://no-such-bucket/kv"}
    engine = open_engine(tmp_path / "one", remote=nowhere)
    assert asked(engine)[:2] == ("none", 0)
    stats = engine.stats().remote
    assert stats is not None and sum(stats.faults.values()) >= 1


@pytest.mark.parametrize("scheme", ["redis", "valkey"])
def test_redis(
    tmp_path: Path, open_engine: Callable[..., Engine], redis: Redis, scheme: str
) -> None:
    url = f"{scheme}://127.0.0.1:{redis.port}/0?prefix=bank"
    round_trip(tmp_path, open_engine, {"url": url, "budget_bytes": 1 << 24})


def test_redis_that_goes_away_and_comes_back(
    tmp_path: Path, open_engine: Callable[..., Engine], redis: Redis
) -> None:
    remote = {"url": f"redis://127.0.0.1:{redis.port}/0", "retries": 0, "timeout_s": 2}
    redis.stop()
    try:
        engine = open_engine(tmp_path / "one", remote=remote)
        tier, _, truth = asked(engine)
        stats = engine.stats()
        assert tier == "none" and stats.remote is not None
        assert stats.remote.faults["failures"] >= 1
        engine.close()
    finally:
        redis.start()
    open_engine(tmp_path / "one", remote=remote).close()  # what is owed goes out
    other = open_engine(tmp_path / "two", model=new_model(), remote=remote)
    tier, _, text = asked(other)
    assert (tier, text) == ("remote", truth)
