"""What a thread that asks keeps of the words that the tokenizer has met (Linux, glibc).

A thread of its own tokenizes each set of words once; what glibc's heap has in use is read before,
behind it, and when the thread has ended.

    python benchmarks/tokenizer_words.py
"""

import gc
import json
import threading

import bank
from heap import heap_state
from machine import machine

from centroidkv.models.loading import load_model
from centroidkv.models.transformers_model import TransformersModel

NUM_NUMBERS = 12_000  # more than a table takes


def in_use() -> int:
    gc.collect()
    return heap_state().in_use


def kept(model: TransformersModel, words: list[str]) -> dict[str, int]:
    """Return what a thread keeps behind these words, and what is left when it has ended."""
    seen: list[int] = []

    def work() -> None:
        model.count_tokens("warm up")
        before = in_use()
        model.count_tokens(" ".join(words))
        seen.append(in_use() - before)

    before = in_use()
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    return {"words": len(words), "kept_bytes": seen[0], "left_bytes": in_use() - before}


def main() -> None:
    model = load_model("bundled:smollm2")
    texts = [row["question"] for row in bank.past_questions()]
    texts += [document.page_content for document in bank.documents()]
    of_the_bank = sorted({word for text in texts for word in text.split()})
    sets = {
        "of the example bank": of_the_bank,
        "numbers of 13 digits": [str(10**12 + n) for n in range(NUM_NUMBERS)],
    }
    found = {name: kept(model, words) for name, words in sets.items()}
    print(json.dumps({"machine": machine(), "model": "bundled:smollm2", **found}, indent=1))


if __name__ == "__main__":
    main()
