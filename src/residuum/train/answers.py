"""Documents that are a question and its answer: which tokens are to be learned, and how many answers are right."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from residuum.errors import InputError
from residuum.model import Transformer
from residuum.model.cross_entropy import NOT_COUNTED
from residuum.train.batches import Batch
from residuum.train.tokenizer import Tokenizer, Tokens

MOST = 1000
"""Held-out questions that are asked, those of the first documents."""

KINDS = 6
"""Most kinds of question that are told apart."""


def mark_token(tokenizer: Tokenizer, mark: str) -> int:
    """The token that ends a question. Raises `InputError` where `mark` is not one."""
    try:
        tokens = tokenizer.encode(mark)
    except InputError:
        raise InputError(f"data.answer = '{mark}' is not in the text: give what ends each question") from None
    if len(tokens) != 1:
        raise InputError(
            f"data.answer = '{mark}' is {len(tokens)} tokens: give one character, with data.tokenizer = 'char'"
        )
    return int(tokens[0])


def in_answers(tokens: Tokens, mark: int, separator: int) -> NDArray[np.bool_]:
    """Where a token is part of an answer: after the first mark of a document, up to and with the separator.

    Raises `InputError` if none is.
    """
    place = np.arange(len(tokens))
    separators = np.maximum.accumulate(np.where(tokens == separator, place, -1))
    marks = np.maximum.accumulate(np.where(tokens == mark, place, -1))
    inside = np.concatenate(([False], (marks > separators)[:-1]))
    if not inside.any():
        raise InputError("data.answer ends no question of the text that is trained on: give what does")
    return inside


class QuestionBatches:
    """Rows of `context` tokens made of whole documents, drawn at random for each row, with the next tokens as targets.

    Only answers are to be learned: other targets are −100. A row begins with a separator, as what a model is asked
    does; its last document may be cut short. In windows of one long text a document would always have the same
    neighbours, and its answer could be learned by heart from them.
    Documents whose answer begins beyond `context` are left out; raises `InputError` if all do.
    """

    def __init__(
        self, tokens: Tokens, tokenizer: Tokenizer, mark: str, context: int, batch_size: int, seed: int
    ) -> None:
        self.tokens, self.separator = tokens, tokenizer.separator
        self.counted = counted = in_answers(tokens, mark_token(tokenizer, mark), self.separator)
        ends = np.flatnonzero(tokens == self.separator) + 1
        starts = np.concatenate(([0], ends[:-1]))
        answers = np.append(np.flatnonzero(counted), len(tokens))
        first = answers[np.searchsorted(answers, starts)]
        fit = (first < ends) & (first - starts < context)
        if not fit.any():
            raise InputError(f"no answer begins within model.context = {context} tokens of its document: set it higher")
        self.starts, self.ends = starts[fit], ends[fit]
        self.context, self.batch_size, self.seed = context, batch_size, seed

    def at(self, step: int, micro: int = 0, rank: int = 0) -> Batch:
        """As `Batches.at`."""
        random = np.random.default_rng([self.seed, step, micro, rank])
        rows = np.full((self.batch_size, self.context + 1), self.separator, np.int64)
        learned = np.zeros(rows.shape, bool)
        for row, of_row in zip(rows, learned, strict=True):
            place = 1
            while place < len(row):
                document = random.integers(len(self.starts))
                start = self.starts[document]
                part = slice(start, min(self.ends[document], start + len(row) - place))
                there = slice(place, place + part.stop - part.start)
                row[there], of_row[there] = self.tokens[part], self.counted[part]
                place = there.stop
        x, y = rows[:, :-1].copy(), np.where(learned, rows, NOT_COUNTED)[:, 1:]
        return torch.from_numpy(x), torch.from_numpy(y)


class Answered(NamedTuple):
    """How well questions were answered."""

    bits_per_byte: float
    """−log₂ p(answer) / bytes, the separator being one."""
    exact_match: float
    """The share whose answer is right to the last token, the separator, when each next token is the best."""
    by_kind: dict[str, float]
    """The same of each kind, where there are a few: those that differ in nothing but their numbers, such as n+n."""


class Questions:
    """The held-out documents that can be asked: those that have the mark and fit into `context` tokens.

    Raises `InputError` where there is none.
    """

    def __init__(self, documents: list[str], tokenizer: Tokenizer, mark: str, context: int) -> None:
        sign, end = mark_token(tokenizer, mark), tokenizer.separator
        self.token_bytes = tokenizer.token_bytes
        self.of_length: dict[tuple[str, int], list[list[int]]] = defaultdict(list)
        self.sign, self.count = sign, 0
        for document in documents[:MOST]:
            tokens = [end, *tokenizer.encode(document).tolist(), end]
            if sign in tokens and len(tokens) <= context + 1:
                kind = re.sub(r"\d+", "n", document.partition(mark)[0])
                self.of_length[kind, len(tokens)].append(tokens)
                self.count += 1
        if not self.count:
            raise InputError(
                f"data.answer = '{mark}': no held-out document has it and fits into model.context = {context}: "
                "give what ends a question, or a longer context"
            )

    @torch.inference_mode()
    def ask(self, model: Transformer, batch_size: int) -> Answered:
        """Ask all of them, `batch_size` at a time.

        An answer is generated as it is told as long as it is right, so reading the truth once says whether it is.
        """
        was_training, device = model.training, model.embedding.weight.device
        right: Counter[str] = Counter()
        asked: Counter[str] = Counter()
        nats, size = 0.0, 0
        model.eval()
        for (kind, _), rows in self.of_length.items():
            asked[kind] += len(rows)
            for start in range(0, len(rows), batch_size):
                truth = torch.tensor(rows[start : start + batch_size])
                x, y = truth[:, :-1], truth[:, 1:]
                y = y.where((x == self.sign).cumsum(-1) > 0, NOT_COUNTED)  # what follows the first mark
                size += int(self.token_bytes[y[y != NOT_COUNTED].numpy()].sum())
                scores, y = model(x.to(device)).float(), y.to(device)
                nats += float(F.cross_entropy(scores.flatten(0, 1), y.flatten(), reduction="sum"))
                right[kind] += int(((scores.argmax(-1) == y) | (y == NOT_COUNTED)).all(-1).sum())
        model.train(was_training)
        few = 1 < len(asked) <= KINDS
        return Answered(
            nats / math.log(2) / size,
            right.total() / self.count,
            {kind: right[kind] / asked[kind] for kind in sorted(asked)} if few else {},
        )
