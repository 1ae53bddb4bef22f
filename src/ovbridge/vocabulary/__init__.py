"""Ordered class names with base/novel marks, prompt templates, and the text bank [K, D]."""

from ovbridge.vocabulary.text_bank import TextBank
from ovbridge.vocabulary.vocabulary import Role, Vocabulary

__all__ = ["Role", "TextBank", "Vocabulary"]
