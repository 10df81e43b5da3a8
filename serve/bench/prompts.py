"""What the benchmark's clients ask: one system prompt for all, questions in English and Japanese, a long history.

It knows nothing of servers or adapters. The texts are fixed, so that runs can be compared.
"""

from __future__ import annotations

from slm.joints import Message

SYSTEM = (
    "You are the assistant of a small mail-order shop for lamps and desks. Answer in the customer's language, in "
    "complete sentences, politely and to the point. Give prices with tax. If you do not know something, say so and "
    "name the department that does."
)
_ENGLISH = (
    "My order number is {number}. The lamp came with a broken switch. What do I have to do?",
    "Order {number}: can you still change the colour of the desk to white before you send it?",
    "I ordered a desk under number {number} last week. When will it arrive, and who carries it upstairs?",
    "Please send the invoice of order {number} again, this time to my company's address.",
)
_JAPANESE = (
    "注文番号{number}です。届いたランプのスイッチが壊れていました。",
    "注文{number}の机の色を、発送前に白へ変更できますか。",
    "注文番号は{number}です。机はいつ届きますか。",
    "注文{number}の請求書を会社あてに送り直してください。",
)
_RECORD = (
    "Ticket {number}: the customer in flat {number} asked whether the reading lamp can be returned after three weeks. "
    "We answered that unused goods are taken back for thirty days, that the return label is in the parcel, and that "
    "the money comes back within five working days after the parcel has reached the warehouse in Osaka. "
)


def conversation(language: str, number: int) -> list[Message]:
    """System prompt and a question; no two numbers give the same question."""
    questions = _JAPANESE if language == "ja" else _ENGLISH
    text = questions[number % len(questions)].format(number=10_000 + number)
    return [Message(role="system", content=SYSTEM), Message(role="user", content=text)]


def long_conversation(number: int, records: int) -> list[Message]:
    """A first turn with a long text in it: about 75 tokens a record, different from the start for each number."""
    history = "".join(_RECORD.format(number=100 * number + record) for record in range(records))
    question = f"These are the tickets of shift {number}. {history}Which of them is still open?"
    return [Message(role="system", content=SYSTEM), Message(role="user", content=question)]


def next_turn(turns: list[Message], answer: str) -> list[Message]:
    """The conversation with the answer and another question."""
    asked = Message(role="user", content="Thank you. And what should I tell the next customer?")
    return [*turns, Message(role="assistant", content=answer), asked]
