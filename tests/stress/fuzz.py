"""Coverage-guided fuzzing of everything that reads a file: `python tests/stress/fuzz.py`.

Each target runs in a process of its own under atheris (libFuzzer), within bounds of memory and of
time an input. A finding is any exception that the reader does not document, too much memory, or a
hang; its input is kept in the folder of `--findings`. Prints a line of counts as JSON and exits 1
if there is a finding.
"""

import argparse
import json
import logging
import random
import re
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

TARGETS = ("blocks", "manifest", "plan", "questions", "sealed")
QUICK_TARGETS = TARGETS[:4]
MEMORY_MB = 2048
INPUT_S = 20
MOST_BYTES = 1 << 17


def main() -> int:
    """Run the targets one after the other; return the exit status."""
    args = _arguments()
    if args.child:
        fuzz(args.target, args.seconds, Path(args.findings))
    chosen = [args.target] if args.target else QUICK_TARGETS if args.quick else TARGETS
    seconds = 4 if args.quick else args.seconds
    Path(args.findings).mkdir(parents=True, exist_ok=True)
    runs = {name: _run(name, seconds, args.findings) for name in chosen}
    violations = [f"a finding in {name}" for name, run in runs.items() if not run["sound"]]
    counts = {"seconds_each": seconds, "targets": runs, "violations": violations}
    sys.stdout.write(json.dumps(counts) + "\n")
    return int(bool(violations))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", choices=TARGETS, help="only this one")
    parser.add_argument("--seconds", type=int, default=600, help="for each target")
    parser.add_argument("--quick", action="store_true", help="four targets, four seconds each")
    parser.add_argument("--findings", default=str(Path(tempfile.gettempdir()) / "centroidkv-fuzz"))
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def _run(name: str, seconds: int, findings: str) -> dict[str, object]:
    """Fuzz one target in a process of its own; return its counts."""
    command = [sys.executable, __file__, "--child", "--target", name, "--seconds", str(seconds)]
    done = subprocess.run(
        [*command, "--findings", findings],
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        timeout=seconds + 300,
    )
    said = done.stdout + done.stderr
    counted = re.search(r"stat::number_of_executed_units:\s+(\d+)", said)
    covered = re.findall(r"cov: (\d+)", said)
    sound = done.returncode == 0 and counted is not None
    if not sound:
        sys.stderr.write(said[-4000:])
    num_runs = int(counted[1]) if counted else 0
    return {"sound": sound, "runs": num_runs, "edges": int(covered[-1]) if covered else 0}


def fuzz(name: str, seconds: int, findings: Path) -> None:
    """Fuzz one target in this process, and end it."""
    import atheris

    with atheris.instrument_imports(include=["centroidkv"]):
        import untrusted_parts
    logging.disable(logging.CRITICAL)
    target = untrusted_parts.targets()[name]

    def mutated(raw: bytes, most: int, seed: int) -> bytes:
        random_ = random.Random(seed)
        altered = atheris.Mutate(raw, most) if random_.random() < 0.7 else raw
        return target.respelled(altered, random_)[:most]

    with tempfile.TemporaryDirectory() as corpus:
        for number, seed in enumerate(target.seeds):
            (Path(corpus) / str(number)).write_bytes(seed)
        options = [
            f"-max_total_time={seconds}",
            f"-rss_limit_mb={MEMORY_MB}",
            f"-timeout={INPUT_S}",
            f"-max_len={MOST_BYTES}",
            f"-artifact_prefix={findings}/{name}-",
            "-print_final_stats=1",
        ]
        atheris.Setup([sys.argv[0], corpus, *options], target.read, custom_mutator=mutated)
        atheris.Fuzz()


if __name__ == "__main__":
    sys.exit(main())
