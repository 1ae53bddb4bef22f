"""The text side of MAVL: tokenizer, RoBERTa encoder, projection to the transformer's width.

Legend: T texts, W words (tokens), C width of the transformer.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

import torch
from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers.models import WordLevel
from tokenizers.trainers import WordLevelTrainer
from torch import Tensor, nn

from ovbridge.errors import TeacherError
from ovbridge.teachers.mavl.config import TextConfig

BEGIN, PADDING, END, UNKNOWN = "<s>", "<pad>", "</s>", "<unk>"
PADDING_ID = 1
"""RoBERTa's padding id; position embeddings are counted from it."""


class TextEncoder(nn.Module):
    """RoBERTa's last hidden states, brought to the transformer's width."""

    def __init__(self, config: TextConfig, d_model: int, dropout: float) -> None:
        super().__init__()
        from transformers import RobertaConfig, RobertaModel

        self.encoder = RobertaModel(
            RobertaConfig(
                vocab_size=config.vocabulary_size,
                hidden_size=config.hidden,
                num_hidden_layers=config.layers,
                num_attention_heads=config.heads,
                intermediate_size=config.feedforward,
                max_position_embeddings=config.positions,
                hidden_dropout_prob=config.dropout,
                attention_probs_dropout_prob=config.dropout,
                type_vocab_size=1,
                layer_norm_eps=1e-5,
                pad_token_id=PADDING_ID,
            ),
            add_pooling_layer=False,
        )
        self.resizer = nn.Linear(config.hidden, d_model)
        self.resizer_norm = nn.LayerNorm(d_model, eps=1e-12)
        self.dropout = nn.Dropout(dropout)

    def forward(self, token_ids_TW: Tensor, padding_TW: Tensor) -> Tensor:
        """[T, W, C]; `padding` is True where a text has ended."""
        inside = (~padding_TW).long()
        states = self.encoder(
            input_ids=token_ids_TW,
            attention_mask=inside,
            token_type_ids=torch.zeros_like(token_ids_TW),
            position_ids=inside.cumsum(dim=1) * inside + PADDING_ID,
        ).last_hidden_state
        words_TWC: Tensor = self.dropout(self.resizer_norm(self.resizer(states)))
        return words_TWC


def tokenize(tokenizer: Tokenizer, texts: Sequence[str], *, limit: int) -> tuple[Tensor, Tensor]:
    """Token ids and padding mask, both [T, W]; longer texts lose their end, at `limit` tokens."""
    rows = [encoding.ids for encoding in tokenizer.encode_batch(list(texts))]
    rows = [row if len(row) <= limit else [*row[: limit - 1], row[-1]] for row in rows]
    return pad_tokens(rows)


def pad_tokens(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Ids [T, W] filled up with the padding id, and the mask that is True there."""
    width = max(len(row) for row in rows)
    ids = torch.tensor([[*row, *[PADDING_ID] * (width - len(row))] for row in rows])
    return ids, ids == PADDING_ID


def train_tokenizer(texts: Iterable[str], *, vocabulary_size: int) -> Tokenizer:
    """A lower-case word tokenizer with RoBERTa's special tokens.

    Words, not pieces of words: a name that training never saw must become `<unk>`, which is trained to mean "some
    object", instead of pieces that mean other things.
    """
    tokenizer = Tokenizer(WordLevel(unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = [BEGIN, PADDING, END, UNKNOWN]
    tokenizer.train_from_iterator(texts, WordLevelTrainer(vocab_size=vocabulary_size, special_tokens=special))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A {END}", special_tokens=[(BEGIN, 0), (END, 2)]
    )
    return tokenizer


def add_words(tokenizer: Tokenizer, texts: Iterable[str], *, vocabulary_size: int) -> Tokenizer:
    """A word tokenizer that also knows the words of `texts`; known words keep their ids, new ones follow.

    A tokenizer of word pieces is returned as it is: it has no unknown words. Words beyond `vocabulary_size` stay
    unknown.
    """
    record = json.loads(tokenizer.to_str())
    if record["model"]["type"] != "WordLevel":
        return tokenizer
    words: dict[str, int] = record["model"]["vocab"]
    fresh = train_tokenizer(texts, vocabulary_size=vocabulary_size).get_vocab()
    for word in sorted(set(fresh) - set(words), key=fresh.__getitem__):
        if len(words) < vocabulary_size:
            words[word] = len(words)
    return Tokenizer.from_str(json.dumps(record))


def hub_tokenizer(name_or_folder: str) -> Tokenizer:
    """The fast tokenizer of a transformers model, from a local folder or the hub."""
    from transformers import AutoTokenizer

    try:
        tokenizer: Tokenizer = AutoTokenizer.from_pretrained(name_or_folder).backend_tokenizer
    except (OSError, ValueError) as error:
        raise TeacherError(
            f"tokenizer {name_or_folder!r} cannot be loaded ({str(error).splitlines()[0]}): "
            "connect to the Hugging Face hub once or pass tokenizer=FOLDER with its tokenizer.json"
        ) from error
    return tokenizer
