"""What is tokenised of a long text, against all of it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors

from perdure.model import excerpt
from perdure.model.excerpt import Excerpts, splits_at_blanks
from perdure.model.tokens import cut_middle

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
WORDS = (
    "a",
    "##a",
    "b",
    "##b",
    "ab",
    "##ab",
    "e",
    "é",
    "ς",
    "σ",
    "##σ",
    "##ς",
    ".",
    ",",
    "[",
    "]",
    "cls",
    "mask",
    "中",
)
SIGNS = [
    *"abAeéÉς.,[]# \t\n\r",
    "Σ",
    "中",
    "\u0301",
    "\u0323",
    "\u1100\u1161",
    "\u00a0",
    "\u3000",
    "\u2028",
    "\x00",
    "\x1c",
    "\x85",
    "\u200b",
    "\ufffd",
    "\ufeff",
    "😀",
    "İ",
    "ﬁ",
    *SPECIAL,
    " [MASK] ",
    "[MASK",
]
TEXTS = st.lists(st.sampled_from(SIGNS), max_size=60).map("".join)


def wordpiece(**normalizer):
    vocabulary = {word: place for place, word in enumerate((*SPECIAL, *WORDS))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=7))
    tokenizer.normalizer = normalizers.BertNormalizer(**normalizer)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.add_special_tokens([AddedToken(word, lstrip=word == "[MASK]") for word in SPECIAL])
    return tokenizer


KINDS = {
    "uncased": wordpiece(),
    "cased": wordpiece(lowercase=False, strip_accents=False),
    "accents": wordpiece(lowercase=True, strip_accents=False),
    "raw": wordpiece(clean_text=False, handle_chinese_chars=False),
}


class Counted:
    """Encodes with a tokenizer, and notes how many characters at most it was given at once."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        self.longest = 0

    def __call__(self, texts):
        self.longest = max([self.longest, *map(len, texts)])
        return [one.ids for one in self.tokenizer.encode_batch_fast(texts)]

    def excerpts(self, limit):
        return Excerpts(self, self.tokenizer, limit)

    def whole(self, text, limit):
        return cut_middle(self.tokenizer.encode_batch_fast([text])[0].ids, limit)


@pytest.mark.parametrize("kind", KINDS)
@given(texts=st.lists(TEXTS, min_size=1, max_size=3), limit=st.integers(1, 9), chars=st.integers(1, 3))
@settings(max_examples=150, deadline=None, derandomize=True)
def test_the_tokens_are_those_of_the_whole_text(kind, texts, limit, chars):
    counted = Counted(KINDS[kind])
    excerpts = counted.excerpts(limit)
    excerpts._chars = chars * limit
    assert excerpts(texts) == [counted.whole(text, limit) for text in texts]


def test_only_the_ends_of_a_long_text_are_read():
    counted = Counted(KINDS["uncased"])
    text = "ab a. b " * 100_000
    assert counted.excerpts(128)([text, "a b"]) == [counted.whole(text, 128), [2, 5, 7, 3]]
    assert counted.longest <= excerpt.CHARS * 128


@pytest.mark.parametrize(
    "text",
    [
        "a" * 5000,
        "a " + "b" * 5000,
        "b" * 5000 + " a",
        "a b " * 100 + " " * 5000 + "a",
        "\x00 " * 5000 + "a b " * 100,
        # Two tokens too few: the special one behind them must not count.
        "a " * 14 + "\x00 " * 5000 + "a b " * 100,
        "a b " * 100 + "\x00 " * 5000 + "a " * 14,
        " " * 5000,
    ],
)
def test_ends_that_hold_too_little_are_not_enough(text):
    counted = Counted(KINDS["uncased"])
    assert counted.excerpts(32)([text]) == [counted.whole(text, 32)]
    assert counted.longest == len(text)


def test_ends_do_not_overlap():
    counted = Counted(KINDS["uncased"])
    excerpts = counted.excerpts(36)
    excerpts._chars = 36
    text = ".... " * 8
    assert excerpts([text]) == [counted.whole(text, 36)]


def changed(**parts):
    tokenizer = wordpiece()
    for name, part in parts.items():
        setattr(tokenizer, name, part)
    return tokenizer


def with_token(token):
    tokenizer = wordpiece()
    tokenizer.add_tokens([token])
    return tokenizer


@pytest.mark.parametrize(
    ("tokenizer", "splits"),
    [
        (wordpiece(), True),
        (changed(post_processor=processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))), True),
        (changed(normalizer=normalizers.NFKC()), False),
        (changed(pre_tokenizer=pre_tokenizers.ByteLevel()), False),
        (changed(pre_tokenizer=pre_tokenizers.Metaspace()), False),
        (changed(model=models.BPE()), False),
        (changed(post_processor=processors.ByteLevel()), False),
        (with_token(AddedToken("a b", normalized=False)), False),
        (with_token(AddedToken("ab", normalized=True)), False),
        (with_token(AddedToken("ab", normalized=False)), True),
    ],
)
def test_which_tokenizers_split_at_blanks(tokenizer, splits):
    assert splits_at_blanks(tokenizer) is splits


def test_a_tokenizer_that_does_not_is_given_whole_texts():
    tokenizer = with_token(AddedToken("a b", normalized=False))
    counted = Counted(tokenizer)
    text = "a b " * 5000
    assert counted.excerpts(32)([text]) == [counted.whole(text, 32)]
    assert counted.longest == len(text)
    unknown = Counted(wordpiece())
    assert Excerpts(unknown, None, 32)([text]) == [unknown.whole(text, 32)]
    assert unknown.longest == len(text)


def test_the_encoder_of_training_reads_only_the_ends_too(encoder):
    text = "refund my order please " * 5000
    whole = encoder._tokenizer([text], truncation=False)["input_ids"][0]
    assert encoder._excerpts._chars is not None
    assert encoder.tokens([text, "card"])[0] == cut_middle(whole, encoder.max_tokens)
