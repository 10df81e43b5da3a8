"""Questions as they are searched: their vectors without what all questions of their language share, and brought nearer
to the passages that answer such questions.

An embedder puts every question near every other: two thirds of a question's vector say that it is a question, and in
which language. Passages that happen to lie that way (tables, lists, text of two languages) are then near to whatever is
asked. What is taken away is the mean of some questions and titles about this and that. For an embedder with a linear
query adapter (a matrix in learned/, which `scripts/query_adapter.py` makes) the vector times that matrix is added: it
learned from the questions of data/reading how people ask for what a page says in other words. Passages stay as they
are, so no index is made anew. It knows nothing of indexes.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np

from rag.index.embedders.base import Embedder, Identity, Vectors
from slm.text.language import detect

LEARNED = Path(__file__).parent / "learned"
# Of the mean so much is taken away. Chosen on twelve organisations of the training split of data/reading and on titles
# of a manual: all from .7 to 1 do as well within a hundredth, .5 does worse in another language than the text's.
_SHARE = 0.8
_USUAL = {
    "en": (
        "How do I reset my password?", "What are the opening hours on Sunday?", "Who approves a request for leave?",
        "How much does a ticket for children cost?", "Where can I park my car?", "My printer shows an error. What now?",
        "Is there a limit on the size of an attachment?", "When does the contract end if I cancel today?",
        "Can I bring my dog?", "what do i need to install before the first start", "Which form is for travel costs?",
        "Whom do I call when the alarm goes off at night?", "How long is the guarantee on spare parts?",
        "Are visitors allowed in the laboratory?", "Why was my payment declined?", "How many people fit in the hall?",
        "What happens to my data after I leave?", "Does the bus also run on public holidays?",
        "I lost my key. What does a new one cost?", "Do we have to wear a helmet there?",
        "Installation and first steps", "Opening hours", "Backup and recovery", "Troubleshooting", "Fees and payment",
        "Minutes of the meeting", "Network configuration", "Who to contact", "List of commands", "Safety rules",
    ),
    "ja": (
        "パスワードを忘れたときはどうすればいいですか。", "日曜日は何時まで開いていますか?",
        "休暇の申請は誰が承認しますか。", "子どもの料金はいくらですか", "車はどこに止められますか。",
        "プリンターにエラーが出ました。どうしたらいい?", "添付ファイルの大きさに上限はありますか。",
        "今日解約すると、契約はいつまで続きますか。", "犬を連れて行ってもいいですか?",
        "最初に起動する前に何を入れておく必要がありますか", "出張費にはどの用紙を使いますか。",
        "夜中に警報が鳴ったら誰に電話しますか。", "部品の保証期間はどれくらいですか。",
        "見学者は実験室に入れますか。", "支払いができなかったのはなぜですか。", "ホールには何人入れますか?",
        "退会した後、私のデータはどうなりますか。", "祝日もバスは走りますか。",
        "鍵をなくしました。作り直すといくらかかりますか。", "そこではヘルメットをかぶらないといけませんか。",
        "インストールと最初の手順", "営業時間", "バックアップと復元", "トラブルシューティング", "料金と支払い方法",
        "会議の議事録", "ネットワークの設定", "問い合わせ先", "コマンドの一覧", "安全のきまり",
    ),
}  # fmt: skip

_shared: dict[tuple[Identity, str], Vectors] = {}


def asked(embedder: Embedder, question: str) -> Vectors:
    """The vector of a question to rank passages by, (dimension,); it is not of length 1."""
    vector = centred(embedder, [question], embedder.queries([question]))[0]
    matrix = _adapter(LEARNED / f"{embedder.identity.name.replace('/', '--')}.npy")
    return vector if matrix is None else np.asarray(vector + vector @ matrix, np.float32)


def centred(embedder: Embedder, questions: Sequence[str], vectors: Vectors) -> Vectors:
    """Questions' vectors, (questions, dimension), without what questions in their languages share."""
    languages = [detect(one, tuple(_USUAL)).language for one in questions]
    shared = np.stack([_shared_by(embedder, language) for language in languages])
    return (vectors - _SHARE * shared).astype(np.float32)


@cache
def _adapter(file: Path) -> Vectors | None:
    """The linear query adapter of an embedder that has one, (dimension, dimension)."""
    return np.asarray(np.load(file), np.float32) if file.is_file() else None


def _shared_by(embedder: Embedder, language: str | None) -> Vectors:
    """What all questions of a language share, computed once; of one that is not known what those of all share."""
    key = embedder.identity, language or ""
    if key not in _shared:
        texts: Sequence[str] = _USUAL[language] if language else [text for texts in _USUAL.values() for text in texts]
        _shared[key] = embedder.queries(texts).mean(axis=0)
    return _shared[key]
