"""The prompts that a model is tried on before it may blend: passages of a made-up bank.

They differ in kind as real ones do: rules, lists, numbers, a passage that contradicts another.
"""

from collections.abc import Sequence

from centroidkv.types import Message

SYSTEM = "You answer questions of a bank's customers. Use only the passages below."
QUESTIONS = (
    "How long does a transfer to another country take, and what does it cost?",
    "My card was stolen this morning. What do I have to do?",
    "Can I repay my loan before its end without a charge?",
    "Which documents do I need to open an account?",
)
PASSAGES = (
    (
        "Transfers within the country are free and arrive on the next working day. Transfers to "
        "other countries cost twelve dollars and take two to four working days, depending on "
        "the bank that receives them."
    ),
    (
        "A stolen card is blocked in the app under Cards, or by phone at any hour. A new card "
        "comes by post within five working days. Payments made after the report are not charged "
        "to you."
    ),
    (
        "Notice of a change: from the first of March, transfers to other countries cost nine "
        "dollars instead of twelve. They arrive after three working days at the latest."
    ),
    (
        "A personal loan can be repaid early at any time. In the first two years the charge is "
        "one per cent of the sum that is repaid; later there is none. Mortgages follow other "
        "rules."
    ),
    (
        "To open an account you need a passport or an identity card, a proof of your address "
        "that is not older than three months, and your tax number. Students also bring their "
        "enrolment."
    ),
    (
        "Limits for one day: 1,000 dollars at cash machines, 2,500 dollars in shops, 10,000 "
        "dollars by transfer. Higher limits can be set in the app and hold until midnight."
    ),
)
SHOWN = 5
# Passages are computed behind these, which no prompt shows.
RUN_UP = (
    (
        "Branches are open from nine to four on working days, and on Saturdays until noon. Advice "
        "on mortgages is by appointment, which you make by phone or in the app."
    ),
    (
        "A current account costs four dollars a month. It is free for students under 28 and for "
        "all who are paid at least 1,500 dollars into it each month."
    ),
    (
        "Savings accounts bear two per cent a year, paid each quarter. Sums above 50,000 dollars "
        "bear one per cent. Up to 2,000 dollars a month can be taken out without notice."
    ),
    (
        "Complaints are answered within fifteen working days. Whoever is not content with the "
        "answer may turn to the ombudsman within six months, which costs nothing."
    ),
)

__all__ = ["PASSAGES", "QUESTIONS", "RUN_UP", "gate_prompt", "shown_in"]


def shown_in(number: int) -> tuple[str, ...]:
    """Return the passages of a prompt; each prompt has another order."""
    turned = PASSAGES[number:] + PASSAGES[:number]
    return turned[:SHOWN] if number % 2 else turned[:SHOWN][::-1]


def gate_prompt(number: int, shown: Sequence[str] = ()) -> list[Message]:
    """Return the messages of a prompt, with other passages than its own if they are given."""
    passages = "\n\n".join(shown or shown_in(number))
    return [
        Message("system", SYSTEM),
        Message("user", f"Passages:\n\n{passages}\n\nQuestion: {QUESTIONS[number]}"),
    ]
