"""Texts and requests that nobody sends who means well, to the app as it runs, with a real encoder and a real stream.

Whatever comes, the answer is never a 5xx, the process goes on, and what was answered is recorded to the letter.
"""

from __future__ import annotations

import gzip
import json
import os
import socket
import time
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from perdure.model.classifier import AnalyticClassifier, shared_features
from perdure.model.encoder import load_encoder
from perdure.records import Feedback, Interaction
from perdure.stream import SqliteStream

REQUESTS = int(os.environ.get("PERDURE_FUZZ", "300"))
SEED = int(os.environ.get("PERDURE_FUZZ_SEED", "0"))
JSON = {"Content-Type": "application/json"}
LABELS = ("card", "login", "parcel", "refund")

TEXTS = {
    "every control character": "".join(map(chr, [*range(32), *range(0x7F, 0xA0)])) + "order",
    "a lone NUL": "\0",
    "NULs within": "my\0order\0",
    "right to left": "איפה ההזמנה שלי أين طلبي",
    "directions turned about": "order \u202e reversed \u202c \u2066 isolated \u2069 \u200f",
    "a family": "👨‍👩‍👧‍👦" * 500,
    "flags and skins": "🇨🇭🇪🇺🏴󠁧󠁢󠁳󠁣󠁴󠁿 👍🏿🧑🏾‍🚀" * 50,
    "half a flag": "🇨",
    "marks upon marks": "e" + "\u0301\u0323\u0489" * 5000,
    "a mark alone": "\u0301",
    "joiners alone": "\u200b\u200c\u200d\ufeff",
    "a byte order mark": "\ufefforder",
    "no characters": "\ufffe\uffff\U0010ffff order",
    "private ones": "\ue000\U000f0000 order",
    "other ends of lines": "a\u2028b\u2029c\u0085d\x0b\x0ce\r\nf",
    "many lines": "order\n" * 20_000,
    "blanks that are none": "\u3164\u2800\u115f",
    "very long words": " ".join("x" * 5000 for _ in range(20)),
    "a word of all letters there are": "".join(map(chr, range(0x4E00, 0x9FFF))),
    "1 MB of one letter": "a" * 1_000_000,
    "1 MB of one emoji": "😀" * 250_000,
    "1 MB of one mark": "\u0301" * 500_000,
    "1 MB of blanks and a letter": " " * 999_999 + "a",
    "for somebody else's parser": "'; DROP TABLE records; -- {{7*7}} ${jndi:ldap://x} %s%n <script>\\u0000\\",
    "old spellings": "ﷺ ﬁ Ⅷ ㎏ ℌ 𝖔𝖗𝖉𝖊𝖗 İıſ",
    "what looks like a token": "[CLS] [SEP] [PAD] [MASK] [UNK] ##a",
}

BODIES = {
    "lists in lists": (b"[" * 100_000, 4),
    "closed lists in lists": (b"[" * 100_000 + b"]" * 100_000, 4),
    "objects in objects": (b'{"text":' * 50_000, 4),
    "deep under a text": (b'{"text":' + b"[" * 900 + b"]" * 900 + b"}", 4),
    "deep under what nobody knows": (b'{"text":"a","x":' + b'{"a":' * 900 + b"1" + b"}" * 900 + b"}", 4),
    "a number without end": (b'{"text":"order","top_k":' + b"9" * 10_000 + b"}", 4),
    "a number beyond all": (b'{"text":"order","top_k":1e999}', 4),
    "a number below": (b'{"text":"order","top_k":-1e999}', 4),
    "less than none": (b'{"text":"order","top_k":-0}', 4),
    "a number that is none": (b'{"text":"order","top_k":NaN}', 4),
    "infinity": (b'{"text":"order","top_k":Infinity}', 4),
    "a whole float": (b'{"text":"order","top_k":2.0}', 2),
    "truth for a number": (b'{"text":"order","top_k":true}', 4),
    "half a pair": (b'{"text":"order \\ud83d"}', 4),
    "the other half": (b'{"text":"\\udc00 order"}', 4),
    "halves the wrong way round": (b'{"text":"\\udc00\\ud83d"}', 4),
    "half a pair as a name": (b'{"\\ud83d":"order"}', 4),
    "half a pair as a subject": (b'{"text":"order","subject":"\\ud83d"}', 4),
    "an escape cut short": (b'{"text":"\\u12', 4),
    "raw control characters": (b'{"text":"a\x01b"}', 4),
    "the same name twice": (b'{"text":"nothing","text":"order"}', 2),
    "a byte order mark": (b'\xef\xbb\xbf{"text":"order"}', 4),
    "UTF-16": ('{"text":"order"}'.encode("utf-16"), 4),
    "UTF-32": ('{"text":"order"}'.encode("utf-32"), 4),
    "Latin-1": ('{"text":"commande oubliée"}'.encode("latin-1"), 4),
    "surrogates as UTF-8": (b'{"text":"\xed\xa0\xbd\xed\xb8\x80"}', 4),
    "slashes that are too long": (b'{"text":"\xc0\xaf"}', 4),
    "beyond Unicode": (b'{"text":"\xf4\x90\x80\x80"}', 4),
    "packed": (gzip.compress(b'{"text":"order"}'), 4),
    "nothing": (b"", 4),
    "nothing but blanks": (b" \n ", 4),
    "two at once": (b'{"text":"a"}{"text":"b"}', 4),
    "no quotes": (b"{text:order}", 4),
    "a comma too many": (b'{"text":"order",}', 4),
    "a comment": (b'{"text":"order"/**/}', 4),
    "null": (b"null", 4),
    "a list": (b'["order"]', 4),
    "too much": (b'{"text":"' + b"a" * 8_000_001 + b'"}', 4),
    "too many": (json.dumps({"texts": ["a"] * 100_000}).encode(), 4),
    "a list full of mistakes": (json.dumps({"texts": [1] * 100_000}).encode(), 4),
}

HEADERS = {
    "text": {"Content-Type": "text/plain"},
    "a form": {"Content-Type": "application/x-www-form-urlencoded"},
    "parts": {"Content-Type": "multipart/form-data; boundary=x"},
    "no type": {"Content-Type": ""},
    "a strange type": {"Content-Type": 'application/json/../text; ;;="'},
    "another charset": {"Content-Type": "application/json; charset=utf-16"},
    "a charset that is none": {"Content-Type": "application/json; charset=\xff"},
    "an encoding": {"Content-Type": "application/json", "Content-Encoding": "gzip"},
    "many encodings": {"Content-Type": "application/json", "Content-Encoding": "br, deflate, x"},
    "what it will not get": {"Content-Type": "application/json", "Accept": "image/png"},
    "a long one": {"Content-Type": "application/json", "X-Long": "x" * 30_000},
    "a range": {"Content-Type": "application/json", "Range": "bytes=0-1"},
    "a method put over": {"Content-Type": "application/json", "X-HTTP-Method-Override": "DELETE"},
    "a strange trace": {"Content-Type": "application/json", "traceparent": "00-zz-\xff-01"},
}

KEPT = b"POST /v1/predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
PREDICT = KEPT + b"Connection: close\r\n"
BODY = b'{"text":"order"}'

RAW = {
    "chunks of a byte": (
        PREDICT + b"Transfer-Encoding: chunked\r\n\r\n" + b"".join(b"1\r\n%c\r\n" % b for b in BODY) + b"0\r\n\r\n",
        b"200",
    ),
    "chunks with more to say": (
        PREDICT + b"Transfer-Encoding: chunked\r\n\r\n10;a=b\r\n" + BODY + b"\r\n0\r\nX-After: 1\r\n\r\n",
        b"200",
    ),
    "a chunk of no size": (PREDICT + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n" + BODY + b"\r\n0\r\n\r\n", b"400"),
    "a chunk below nothing": (PREDICT + b"Transfer-Encoding: chunked\r\n\r\n-1\r\n\r\n", b"400"),
    "two lengths": (PREDICT + b"Content-Length: 16\r\nContent-Length: 17\r\n\r\n" + BODY, b"400"),
    "a length below nothing": (PREDICT + b"Content-Length: -1\r\n\r\n" + BODY, b"400"),
    "a length that is none": (PREDICT + b"Content-Length: many\r\n\r\n" + BODY, b"400"),
    "no HTTP": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", b"400"),
    "a line without end": (b"GET /" + b"a" * 200_000, b"4"),
    "an old version": (b"GET /healthz HTTP/1.0\r\n\r\n", b"200"),
    "a path that is no text": (b"DELETE /v1/subjects/%ff%fe%00 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", b"4"),
    "a path with half an escape": (b"DELETE /v1/subjects/%f HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", b"202"),
    "a path upwards": (b"GET /../../etc/passwd HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", b"404"),
    "a method of one's own": (
        b"BREW /v1/predict HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
        b"4",
    ),
    "two in a row": (
        KEPT + b"Content-Length: 16\r\n\r\n" + BODY + PREDICT + b"Content-Length: 16\r\n\r\n" + BODY,
        b"200",
    ),
    "one that asks first": (PREDICT + b"Expect: 100-continue\r\nContent-Length: 16\r\n\r\n" + BODY, b"100"),
}


@pytest.fixture(scope="module")
def encoder(tiny_encoder):
    return load_encoder(str(tiny_encoder), max_tokens=32, adapted_layers=2)


@pytest.fixture
def load(encoder):
    def make(version):
        return AnalyticClassifier(
            version,
            encoder,
            shared_features(encoder.inputs, 64, 0.8, 7),
            feature_seed=7,
            bandwidth=0.8,
            labels=LABELS,
            weights=np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32),
            temperature=0.7,
            adapted=None,
            batch=8,
        )

    return make


@pytest.fixture
def stream(tmp_path):
    with SqliteStream(tmp_path / "stream.db") as opened:
        yield opened


class Api:
    """The app behind a server, which must be well at the end, and must have recorded what it answered."""

    def __init__(self, url):
        self.url = url
        self.http = httpx.Client(base_url=url, timeout=30)
        self.expected: list[str] = []

    def post(self, path, content, headers=JSON):
        response = self.http.post(path, content=content, headers=headers)
        assert response.status_code < 500, response.text[:500]
        if response.status_code >= 400:
            problem = response.json()
            assert problem["status"] == response.status_code
            assert len(response.content) < 5000, "what was refused does not come back whole"
        return response

    def predict(self, text):
        """Sends `text` with everything but ASCII escaped, so that half a pair can be sent too."""
        response = self.post("/v1/predict", json.dumps({"text": text}).encode("ascii"))
        if response.status_code == 200:
            answer = response.json()
            assert answer["recorded"] is True
            assert answer["label"] in LABELS
            assert 0 <= answer["confidence"] <= 1
            self.expected.append(text)
        return response

    def raw(self, data, *, pause=0.0, end=False):
        """What comes back for bytes of one's own, sent in two parts if there is a pause between them."""
        place = urlsplit(self.url)
        received = b""
        with socket.create_connection((place.hostname, place.port), timeout=2) as connection:
            half = len(data) // 2 if pause else 0
            connection.sendall(data[:half])
            time.sleep(pause)
            try:
                connection.sendall(data[half:])
                if end:
                    return b""
                while part := connection.recv(65536):
                    received += part
            except (TimeoutError, ConnectionError):
                # It waits for the rest of what is no request, or has cut it off.
                return received
        return received


@pytest.fixture
def api(registry, publish, listening, load, records, stream, request):
    publish(registry, "v1")
    opened = Api(listening(load, http=getattr(request, "param", "auto"))[0])
    with opened.http:
        yield opened
        assert opened.http.get("/healthz").status_code == 200
        assert opened.http.get("/readyz").status_code == 200
        opened.predict("where is my order")
    told = [record.text for record in records(stream) if isinstance(record, Interaction)]
    assert told == opened.expected


def test_texts_that_nobody_expects(api):
    for name, text in TEXTS.items():
        status = api.predict(text).status_code
        assert status == 200 or (status == 413 and len(text) >= 50_000), name


def test_many_of_them_at_once(api):
    texts = [text for text in TEXTS.values() if len(text) < 10_000]
    answer = api.post("/v1/predict", json.dumps({"texts": texts})).json()
    assert len(answer["predictions"]) == len(texts)
    api.expected += texts
    tensor = {"name": "text", "shape": [len(texts)], "datatype": "BYTES", "data": texts}
    assert api.post("/v2/models/perdure/infer", json.dumps({"inputs": [tensor]})).status_code == 200
    api.expected += texts


def test_what_a_text_is_answered_does_not_depend_on_its_neighbours(api):
    texts = ["where is my order", "\0", "😀" * 40, "e" + "\u0301" * 300]
    alone = [api.predict(text).json() for text in texts]
    beside = api.post("/v1/predict", json.dumps({"texts": texts})).json()["predictions"]
    api.expected += texts
    for one, other in zip(alone, beside, strict=True):
        assert one["label"] == other["label"]
        assert one["confidence"] == pytest.approx(other["confidence"], abs=1e-4)


def test_bodies_that_are_none(api):
    for name, (body, kind) in BODIES.items():
        response = api.post("/v1/predict", body)
        assert response.status_code // 100 == kind, name
        if kind == 2:
            api.expected.append("order")
        for path in ("/v1/feedback", "/v1/rollback", "/v2/models/perdure/infer", "/v1/versions/v1/promote"):
            api.post(path, body)


def test_headers_that_say_something_else(api):
    for headers in HEADERS.values():
        raw = {name: value.encode("latin-1") for name, value in headers.items()}
        response = api.post("/v1/predict", BODY, raw)
        assert response.status_code in {200, 400, 415, 431}
        if response.status_code == 200:
            api.expected.append("order")
        assert api.post("/v1/predict", b"\xff\xfe\x00", raw).status_code in {400, 415, 431}


@pytest.mark.parametrize("api", ["h11", "httptools"], indirect=True)
def test_bytes_that_no_client_sends(api, request):
    for name, (data, begin) in RAW.items():
        received = api.raw(data)
        if received:
            assert received.split(b" ")[1].startswith(begin), (name, received[:200])
        else:
            assert begin.startswith(b"4"), name
        assert not [line for line in received.split(b"\r\n") if line.startswith(b"HTTP/1.1 5")], name
        api.expected += ["order"] * received.count(b'"label"')


@pytest.mark.parametrize("api", ["h11", "httptools"], indirect=True)
def test_a_slow_body_is_waited_for_and_one_that_breaks_off_leaves_nothing(api):
    whole = PREDICT + b"Content-Length: 16\r\n\r\n" + BODY
    assert b"200 OK" in api.raw(whole, pause=0.4)
    api.expected.append("order")
    for length in (len(PREDICT), len(whole) - 1, len(whole) - 10):
        api.raw(whole[:length], end=True)
    api.raw(PREDICT + b"Transfer-Encoding: chunked\r\n\r\n10\r\n" + BODY[:5], end=True)


def test_feedback_that_nobody_means(api, records, stream):
    said = []
    for value in TEXTS.values():
        response = api.post("/v1/feedback", json.dumps({"id": "x", "label": value, "source": "tests"}))
        if response.status_code == 202:
            said.append(value)
    assert len(said) > 8
    assert [record.label for record in records(stream) if isinstance(record, Feedback)] == said


FIELDS = ["text", "texts", "top_k", "subject", "id", "label", "source", "feedback", "inputs", "reason", "labels"]
PATHS = ["/v1/predict", "/v1/feedback", "/v1/rollback", "/v1/versions/v1/promote", "/v2/models/perdure/infer"]
characters = st.characters() | st.characters(categories=["Cs", "Cc", "Cf", "Mn", "Co", "Cn"])
texts = st.text(characters, max_size=60) | st.text(st.sampled_from("e\u0301\u200d😀🏽\u202e\0\ud83d"), max_size=200)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts | st.sampled_from(FIELDS), inner, max_size=4),
    max_leaves=20,
)
RULES = {
    "deadline": None,
    "database": None,
    "suppress_health_check": list(HealthCheck),
    "max_examples": max(REQUESTS // 3, 1),
}


def test_any_text_is_answered_or_refused(api):
    @seed(SEED)
    @settings(**RULES)
    @given(texts)
    def ask(text):
        whole = text.strip() != "" and not any(0xD800 <= ord(one) < 0xE000 for one in text)
        assert api.predict(text).status_code == (200 if whole else 422)

    ask()


def test_any_json_is_answered_or_refused(api):
    @seed(SEED)
    @settings(**RULES)
    @given(st.sampled_from(PATHS), st.dictionaries(st.sampled_from(FIELDS), json_values, max_size=4) | json_values)
    def ask(path, value):
        response = api.post(path, json.dumps(value, allow_nan=True))
        if response.status_code == 200 and path == "/v1/predict":
            api.expected += [value["text"]] if value.get("text") is not None else value["texts"]

    ask()


def test_any_bytes_are_answered_or_refused(api):
    kinds = st.sampled_from(["application/json", "text/plain", "application/x+json", "application/json; charset=x", ""])

    @seed(SEED)
    @settings(**RULES)
    @given(st.sampled_from(PATHS), st.binary(max_size=200), kinds)
    def ask(path, content, kind):
        status = api.post(path, content, {"Content-Type": kind}).status_code
        assert status >= 400 or not content

    ask()
