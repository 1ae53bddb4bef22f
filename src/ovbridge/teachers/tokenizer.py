"""A small byte-level BPE tokenizer for text towers that are trained here.

It is kept as JSON inside the weights file that it belongs to, so a teacher is one file.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor

PAD_ID = 0


class ByteBpeTokenizer:
    """Text → ids in CLIP's convention: start, pieces, end; the end id is the highest of all.

    Any string can be encoded; words that the training text did not contain fall apart into bytes.
    """

    def __init__(self, model_json: str) -> None:
        self.model_json = model_json
        self._tokenizer = Tokenizer.from_str(model_json)
        self._pieces = self._tokenizer.get_vocab_size()

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> ByteBpeTokenizer:
        """Learn merges from `texts`; `vocab_size` counts the two marks for start and end."""
        tokenizer = Tokenizer(models.BPE())
        tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size - 2,
            special_tokens=["<pad>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator(texts, trainer)
        return cls(tokenizer.to_str())

    @property
    def vocab_size(self) -> int:
        """Number of ids, start and end marks included."""
        return self._pieces + 2

    @property
    def start_id(self) -> int:
        """Id of the start mark."""
        return self._pieces

    @property
    def end_id(self) -> int:
        """Id of the end mark, the highest id."""
        return self._pieces + 1

    def __call__(self, texts: Sequence[str], context_length: int) -> Tensor:
        """ids: [N, context_length] int64, padded with 0; a text that is too long is cut, its end mark kept."""
        ids = torch.full((len(texts), context_length), PAD_ID, dtype=torch.int64)
        for row, encoding in enumerate(self._tokenizer.encode_batch(list(texts))):
            pieces = [self.start_id, *encoding.ids[: context_length - 2], self.end_id]
            ids[row, : len(pieces)] = torch.tensor(pieces)
        return ids
