"""A registry whose store has a bad day: a real S3 server behind a proxy that cuts, delays, hides and lies."""

from __future__ import annotations

import os
import shutil
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from perdure.errors import RegistryError, RegistryUnavailable, StalePromotion, VersionDamaged, VersionNotFound
from perdure.registry import JUDGE, Card, EncoderCard, Registry, Shards
from perdure.registry import shards as shards_module
from perdure.registry import store as store_module
from perdure.registry.versions import LEFTOVER_SECONDS

from ...s3_faults import (
    AnswerLost,
    AnswerReplaced,
    CutDownload,
    CutUpload,
    Fault,
    FaultProxy,
    Refused,
    Request,
    Silent,
    Slow,
)

pytestmark = pytest.mark.s3

FILES = {"head.safetensors": b"\x00weights" * 30_000, "labels.json": b"[]", "drift/report.html": b"<html>"}
GRAPH = b"a large graph" * 1000


@pytest.fixture
def proxy(s3_server: Any) -> Iterator[FaultProxy]:
    with FaultProxy(s3_server.port) as made:
        yield made


@pytest.fixture
def url(s3_bucket: Any) -> str:
    url: str = s3_bucket.url
    return url


@pytest.fixture
def registry(url: str, proxy: FaultProxy, s3_server: Any, monkeypatch: pytest.MonkeyPatch) -> Registry:
    """Through the proxy."""
    for name, value in {**s3_server.environment, "AWS_ENDPOINT_URL": proxy.endpoint}.items():
        monkeypatch.setenv(name, value)
    return Registry(url)


@pytest.fixture
def direct(url: str, registry: Registry, s3_server: Any) -> Registry:
    """Around the proxy."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", s3_server.endpoint)
        return Registry(url)


def card(name: str, parent: str | None = None) -> Card:
    encoder = EncoderCard(name="mini", fingerprint="f00")
    return Card(name=name, parent=parent, kind="head", encoder=encoder, labels=("a", "b"))


def once(wanted: Callable[[Request], bool], fault: Fault) -> Callable[[Request], Fault | None]:
    """`fault` for the first request that is `wanted`."""
    left = [fault]
    return lambda request: left.pop() if left and wanted(request) else None


def always(wanted: Callable[[Request], bool], fault: Fault) -> Callable[[Request], Fault | None]:
    return lambda request: fault if wanted(request) else None


def creates(request: Request) -> bool:
    return request.creates


# ── an answer that is lost ──
@pytest.mark.parametrize("fault", [AnswerLost(), AnswerReplaced(), AnswerReplaced(500, "InternalError")])
def test_a_promotion_whose_answer_is_lost_is_known_as_ones_own(
    registry: Registry, direct: Registry, proxy: FaultProxy, fault: Fault
) -> None:
    direct.write(card("v1"), FILES)
    proxy.fault = once(creates, fault)
    entry = registry.promote("v1", number=1, reason="the first", by=JUDGE)
    assert direct.promotions() == (entry,)


def test_a_promotion_that_is_never_confirmed_is_known_as_ones_own_too(
    registry: Registry, direct: Registry, proxy: FaultProxy
) -> None:
    direct.write(card("v1"), FILES)
    proxy.fault = always(creates, AnswerReplaced())
    entry = registry.promote("v1", number=1, reason="the first", by=JUDGE)
    assert direct.promotions() == (entry,)


def test_a_promotion_that_another_one_made_is_not_taken_for_ones_own(
    registry: Registry, direct: Registry, proxy: FaultProxy
) -> None:
    """The answer is lost before the server has it, and somebody else is quicker than the second try."""
    for name in ("v1", "v2"):
        direct.write(card(name), FILES)

    def overtaken(request: Request) -> Fault | None:
        if request.creates and not direct.promotions():
            direct.promote("v2", reason="quicker", by="bob")
            return Refused(503, "ServiceUnavailable")
        return None

    proxy.fault = overtaken
    with pytest.raises(StalePromotion, match=r"promotion 1 to v1 came too late: bob .* promoted v2"):
        registry.promote("v1", number=1, reason="slow", by=JUDGE)
    assert [entry.version for entry in direct.promotions()] == ["v2"]


def test_a_promotion_of_unknown_fate_is_an_error_and_the_same_again_finds_out(
    registry: Registry, direct: Registry, proxy: FaultProxy
) -> None:
    direct.write(card("v1"), FILES)
    away = []

    def gone_after_the_write(request: Request) -> Fault | None:
        if request.creates:
            away.append(1)
            return AnswerReplaced()
        return Refused(503, "ServiceUnavailable") if away else None

    proxy.fault = gone_after_the_write
    with pytest.raises(RegistryUnavailable, match=r"failed at writing promotions/00000001\.json"):
        registry.promote("v1", number=1, reason="the first", by=JUDGE)
    proxy.fault = lambda request: None
    entry = registry.promote("v1", number=1, reason="the first", by=JUDGE)
    assert direct.promotions() == (entry,)


def test_a_card_whose_answer_is_lost_seals_its_version(registry: Registry, proxy: FaultProxy) -> None:
    proxy.fault = once(creates, AnswerLost())
    assert registry.write(card("v1"), FILES) == registry.card("v1")


def test_a_snapshot_whose_answer_is_lost_keeps_its_owner(
    registry: Registry, url: str, proxy: FaultProxy, tmp_path: Path
) -> None:
    (tmp_path / "memory.db").write_bytes(b"rows")
    shards = Shards(url, "events")
    proxy.fault = once(lambda request: request.creates and "/log/" in request.path, AnswerLost())
    mine = shards.claim(0, "one")
    proxy.fault = once(lambda request: request.creates and "/log/" in request.path, AnswerReplaced())
    assert shards.publish(mine, {"memory.db": tmp_path / "memory.db"}, {"0": 5}).number == 2
    assert Shards(url, "events").claim(0, "two").offset == {"0": 5}


# ── another one is writing the same ──
CONFLICT = Refused(409, "ConditionalRequestConflict")


def test_a_conflict_with_one_who_fails_is_tried_again(registry: Registry, direct: Registry, proxy: FaultProxy) -> None:
    direct.write(card("v1"), FILES)
    proxy.fault = once(creates, CONFLICT)
    entry = registry.promote("v1", number=1, reason="the first", by=JUDGE)
    assert direct.promotions() == (entry,)


def test_a_conflict_with_one_whose_object_comes_later_is_lost(
    registry: Registry, direct: Registry, proxy: FaultProxy
) -> None:
    for name in ("v1", "v2"):
        direct.write(card(name), FILES)
    tries: list[str] = []

    def in_conflict_then_overtaken(request: Request) -> Fault | None:
        if not request.creates:
            return None
        tries.append(request.path)
        if len(tries) < 3:
            return CONFLICT
        direct.promote("v2", reason="quicker", by="bob")
        return None

    proxy.fault = in_conflict_then_overtaken
    with pytest.raises(StalePromotion, match=r"promotion 1 to v1 came too late: bob .* promoted v2"):
        registry.promote("v1", number=1, reason="slow", by=JUDGE)
    assert len(tries) == 3


def test_a_conflict_without_end_is_an_error(
    registry: Registry, direct: Registry, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "_CONFLICT_PAUSES", (0.01, 0.01))
    direct.write(card("v1"), FILES)
    tries: list[str] = []

    def in_conflict(request: Request) -> Fault | None:
        if request.creates:
            tries.append(request.path)
        return CONFLICT if request.creates else None

    proxy.fault = in_conflict
    with pytest.raises(RegistryUnavailable, match=r"promotions/00000001\.json: for 0 s .* another process"):
        registry.promote("v1", number=1, reason="the first", by=JUDGE)
    assert len(tries) == 3
    assert direct.promotions() == ()


# ── connections that break ──
def test_a_version_whose_upload_is_cut_at_any_object_is_never_there(
    registry: Registry, direct: Registry, proxy: FaultProxy, tmp_path: Path
) -> None:
    wanted = len(FILES) + 2
    for cut in range(wanted):
        name = f"v{cut}"
        uploads: list[str] = []

        def broken(request: Request, cut: int = cut, uploads: list[str] = uploads) -> Fault | None:
            if request.writes and request.path not in uploads:
                uploads.append(request.path)
            return CutUpload(len(request.body) // 2) if request.writes and len(uploads) > cut else None

        proxy.fault = broken
        with pytest.raises(RegistryUnavailable, match=f"failed at writing (versions/{name}/|shared/)"):
            registry.write(card(name), FILES, {"graph": GRAPH + name.encode()})
        proxy.fault = lambda request: None
        assert direct.versions() == tuple(f"v{before}" for before in range(cut))
        with pytest.raises(VersionNotFound):
            direct.promote(name, reason="", by="ann")
        # And goes on where it was.
        registry.write(card(name), FILES, {"graph": GRAPH + name.encode()})
        assert (direct.fetch(name, tmp_path) / "graph").read_bytes() == GRAPH + name.encode()
    assert len(uploads) == wanted, "each of them was cut once"


def test_half_a_file_never_reaches_the_cache(
    registry: Registry, direct: Registry, proxy: FaultProxy, tmp_path: Path
) -> None:
    direct.write(card("v1"), FILES)
    proxy.fault = always(lambda request: request.path.endswith("head.safetensors"), CutDownload(1000))
    with pytest.raises(RegistryUnavailable, match="failed at reading versions/v1/head"):
        registry.fetch("v1", tmp_path)
    assert not list(tmp_path.glob(".*"))
    assert not (tmp_path / "v1" / "head.safetensors").exists()
    proxy.fault = once(lambda request: request.path.endswith("head.safetensors"), CutDownload(1000))
    assert (registry.fetch("v1", tmp_path) / "head.safetensors").read_bytes() == FILES["head.safetensors"]


def test_a_store_that_says_nothing_is_not_waited_for_for_ever(
    url: str, registry: Registry, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    silence = store_module._CLIENT["read_timeout"]
    assert isinstance(silence, timedelta)
    assert silence <= timedelta(seconds=60)
    monkeypatch.setitem(store_module._CLIENT, "read_timeout", timedelta(seconds=0.3))
    monkeypatch.setitem(store_module._RETRY, "retry_timeout", timedelta(seconds=0.1))
    proxy.fault = lambda request: Silent()
    begin = time.monotonic()
    with pytest.raises(RegistryUnavailable, match="can be reached"):
        Registry(url).champion()
    assert time.monotonic() - begin < 5


def test_one_that_is_slow_but_goes_on_is_waited_for(
    url: str, registry: Registry, direct: Registry, proxy: FaultProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The file takes longer than the store may be silent.
    monkeypatch.setitem(store_module._CLIENT, "read_timeout", timedelta(seconds=0.5))
    direct.write(card("v1"), FILES)
    proxy.fault = always(lambda request: request.path.endswith("head.safetensors"), Slow(24_000, 0.1))
    begin = time.monotonic()
    slow = Registry(url)
    assert (slow.fetch("v1", tmp_path) / "head.safetensors").read_bytes() == FILES["head.safetensors"]
    assert time.monotonic() - begin > 0.7


def test_a_slow_upload_may_take_longer_than_a_store_may_be_silent(
    url: str, registry: Registry, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(store_module._CLIENT, "read_timeout", timedelta(seconds=0.5))
    monkeypatch.setitem(store_module._RETRY, "max_retries", 0)
    # More than the buffers on the way hold; in one request, as shards are sent.
    large = bytes(16_000_000)
    (tmp_path / "memory.db").write_bytes(large)
    shards = Shards(url, "events")
    mine = shards.claim(0, "one")
    proxy.upload = 8e6
    begin = time.monotonic()
    mine = shards.publish(mine, {"memory.db": tmp_path / "memory.db"}, {"0": 1})
    assert time.monotonic() - begin > 1
    proxy.upload = float("inf")
    assert (shards.fetch(mine, tmp_path / "fetched") / "memory.db").read_bytes() == large


# ── refusals ──
def test_a_store_that_asks_to_slow_down_is_asked_again(registry: Registry, proxy: FaultProxy) -> None:
    seen: dict[tuple[str, str], int] = {}

    def first_time(request: Request) -> Fault | None:
        key = request.method, request.target
        seen[key] = seen.get(key, 0) + 1
        headers = ("Retry-After: 1",) if request.writes else ()
        return Refused(503, "SlowDown", headers) if seen[key] == 1 else None

    proxy.fault = first_time
    registry.write(card("v1"), {"labels.json": b"[]"})
    registry.promote("v1", number=1, reason="", by=JUDGE)
    champion = registry.champion()
    assert champion is not None
    assert champion.version == "v1"
    assert min(seen.values()) >= 1
    assert max(seen.values()) >= 2


@pytest.mark.parametrize(
    ("fault", "advice"),
    [
        (Refused(503, "SlowDown"), "SlowDown. The store wants fewer requests"),
        (Refused(403, "AccessDenied"), "the right to read, write, list and delete"),
        (Refused(400, "ExpiredToken"), "ExpiredToken. The credentials have expired: give new ones"),
        (Refused(403, "InvalidAccessKeyId"), "Give the right credentials"),
        (Refused(403, "SignatureDoesNotMatch"), "Give the right credentials"),
        (Refused(403, "RequestTimeTooSkewed"), "clock"),
        (Refused(507, "XMinioStorageFull"), "Free some space there"),
        (Refused(403, "QuotaExceeded"), "Free some space there"),
    ],
)
def test_a_refused_write_says_why_and_what_to_do_and_changes_nothing(
    registry: Registry, direct: Registry, proxy: FaultProxy, fault: Refused, advice: str
) -> None:
    direct.write(card("v1"), FILES)
    direct.promote("v1", reason="", by="ann")
    proxy.fault = always(lambda request: request.writes, fault)
    for act in (
        lambda: registry.write(card("v2"), {"labels.json": b"[]"}),
        lambda: registry.promote("v1", reason="again", by="ann"),
    ):
        with pytest.raises(RegistryUnavailable, match=advice) as caught:
            act()
        assert "hunter2" not in str(caught.value)
        assert "not-a-secret" not in str(caught.value)
    assert direct.versions() == ("v1",)
    assert len(direct.promotions()) == 1


def test_a_bucket_that_is_not_there_is_named(registry: Registry) -> None:
    with pytest.raises(RegistryError, match="Make that bucket"):
        Registry("s3://nobody-made-this/models").write(card("v1"), {"a": b"x"})


def test_wrong_credentials_are_said_and_not_shown(
    registry: Registry, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2hunter2")
    with pytest.raises(RegistryUnavailable, match=r"SignatureDoesNotMatch\. Give the right credentials") as caught:
        Registry(url).write(card("v1"), {"a": b"x"})
    assert "hunter2" not in str(caught.value)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes certificates with openssl")
def test_an_endpoint_with_tls_needs_its_authority(
    registry: Registry, url: str, s3_server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = Path(__file__).parents[3] / "deploy" / "kafka" / "certificates.sh"
    subprocess.run(["/bin/sh", str(script), str(tmp_path)], check=True, capture_output=True)
    served = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    served.load_cert_chain(tmp_path / "broker.pem")
    monkeypatch.setitem(store_module._RETRY, "max_retries", 0)
    with FaultProxy(s3_server.port, tls=served) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        with pytest.raises(RegistryUnavailable):
            Registry(url).champion()
        assert not proxy.seen
        monkeypatch.setenv("AWS_CA_BUNDLE", str(tmp_path / "ca.pem"))
        Registry(url).write(card("v1"), {"a": b"x"})
        assert Registry(url).versions() == ("v1",)


def test_an_authority_that_is_none_is_refused(
    registry: Registry, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ca.pem").write_text("nothing of the kind")
    monkeypatch.setenv("AWS_CA_BUNDLE", str(tmp_path / "ca.pem"))
    with pytest.raises(RegistryError, match="cannot be opened"):
        Registry(url)
    monkeypatch.setenv("AWS_CA_BUNDLE", str(tmp_path / "missing.pem"))
    with pytest.raises(RegistryError, match=r"AWS_CA_BUNDLE names .*missing\.pem, which cannot be read: No such file"):
        Registry(url)


# ── listings and clocks ──
def test_what_is_listed_late_is_not_collected(
    registry: Registry, direct: Registry, proxy: FaultProxy, s3_bucket: Any
) -> None:
    for number in range(1, 5):
        direct.write(card(f"v{number}"), {"labels.json": b"[]"})
    proxy.late = 60.0
    # Its parent is listed, and nobody else needs it.
    s3_bucket.age("versions", 3600)
    registry.write(card("v9", parent="v1"), {"labels.json": b"[]"})
    registry.promote("v9", number=1, reason="", by=JUDGE)
    assert registry.versions() == ("v1", "v2", "v3", "v4")
    assert registry.collect(retain=2) == ("v2",)
    assert direct.versions() == ("v1", "v3", "v4", "v9")
    champion = registry.champion()
    assert champion is not None
    assert champion.version == "v9"


def test_a_shared_file_of_a_version_that_is_listed_late_stays(
    registry: Registry, direct: Registry, proxy: FaultProxy, s3_bucket: Any, tmp_path: Path
) -> None:
    direct.write(card("v1"), {"labels.json": b"[]"}, {"graph": GRAPH})
    direct.write(card("v2"), {"labels.json": b"[]"})
    s3_bucket.age("shared", LEFTOVER_SECONDS + 7200)
    s3_bucket.age("versions", 3600)
    proxy.late = 60.0
    registry.write(card("v3"), {"labels.json": b"[]"}, {"graph": GRAPH})
    registry.promote("v3", number=1, reason="", by=JUDGE)
    assert registry.collect(retain=1) == ("v1",)
    assert (direct.fetch("v3", tmp_path) / "graph").read_bytes() == GRAPH


def test_work_of_yesterday_whose_card_is_listed_late_stays(
    registry: Registry, direct: Registry, proxy: FaultProxy, s3_bucket: Any
) -> None:
    """A turn that was interrupted for a day writes its card, and the store lists only the rest."""
    direct.write(card("v1"), {"labels.json": b"[]"})
    direct.write(card("v2"), {"labels.json": b"[]"})
    s3_bucket.age("versions/v2", LEFTOVER_SECONDS + 7200)
    s3_bucket.age("versions/v1", 3600)
    os.utime(s3_bucket.folder / "versions" / "v2" / "card.json")
    proxy.late = 60.0
    registry.collect(retain=5)
    assert direct.versions() == ("v1", "v2")
    assert direct.read("v2", "labels.json") == b"[]"


def test_shards_whose_entries_are_listed_late_keep_their_owner(
    registry: Registry, url: str, proxy: FaultProxy, tmp_path: Path
) -> None:
    proxy.late = 60.0
    (tmp_path / "memory.db").write_bytes(b"rows")
    shards = Shards(url, "events")
    mine = shards.claim(0, "one")
    for position in range(3):
        mine = shards.publish(mine, {"memory.db": tmp_path / "memory.db"}, {"0": position})
    assert mine.number == 4
    other = Shards(url, "events").claim(0, "two")
    assert (other.number, other.offset) == (5, {"0": 2})
    with pytest.raises(shards_module.StaleShard):
        shards.publish(mine, {"memory.db": tmp_path / "memory.db"}, {"0": 9})


@pytest.mark.parametrize("ahead", [-7 * 86_400.0, 7 * 86_400.0])
def test_a_store_with_a_wrong_clock_does_not_make_young_files_old(
    registry: Registry, direct: Registry, s3_bucket: Any, proxy: FaultProxy, tmp_path: Path, ahead: float
) -> None:
    proxy.ahead = ahead
    direct.write(card("v1"), {"labels.json": b"[]"}, {"graph": GRAPH})
    (tmp_path / "memory.db").write_bytes(b"rows")
    # Somebody's work: a file without a card, and a shared one that no card names yet.
    s3_bucket.backend.put("versions/v2/labels.json", b"half")
    s3_bucket.backend.put(f"shared/{'a' * 64}", b"about to be named")
    registry.collect(retain=5)
    assert "labels.json" in s3_bucket.names("versions/v2")
    assert "a" * 64 in s3_bucket.names("shared")
    shards = Shards(s3_bucket.url, "events")
    mine = shards.claim(0, "one")
    s3_bucket.backend.put(f"shards/events/0/files/{'b' * 64}", b"about to be named")
    shards.publish(mine, {"memory.db": tmp_path / "memory.db"}, {"0": 1})
    assert "b" * 64 in s3_bucket.names("shards/events/0/files")


# ── deleted while it is read ──
def test_a_version_that_retention_deletes_while_it_is_read_is_gone_and_not_damaged(
    registry: Registry, direct: Registry, proxy: FaultProxy, tmp_path: Path
) -> None:
    for name in ("v1", "v2"):
        direct.write(card(name), FILES)
    deleted: list[str] = []

    def meanwhile(request: Request) -> Fault | None:
        if request.path.endswith("v1/head.safetensors") and not deleted:
            deleted.extend(direct.collect(retain=1))
        return None

    proxy.fault = meanwhile
    with pytest.raises(VersionNotFound) as caught:
        registry.fetch("v1", tmp_path)
    assert not isinstance(caught.value, VersionDamaged)
    assert deleted == ["v1"]


# ── copies ──
def test_while_the_store_is_away_a_whole_copy_is_enough(
    registry: Registry, direct: Registry, proxy: FaultProxy, tmp_path: Path
) -> None:
    direct.write(card("v1"), FILES, {"graph": GRAPH})
    folder = registry.fetch("v1", tmp_path)
    proxy.fault = lambda request: Refused(400, "AccessDenied")
    assert registry.fetch("v1", tmp_path) == folder
    damaged = bytes(reversed(FILES["head.safetensors"]))
    (folder / "head.safetensors").write_bytes(damaged)
    with pytest.raises(RegistryUnavailable):
        registry.fetch("v1", tmp_path)
    with pytest.raises(RegistryUnavailable):
        registry.fetch("v2", tmp_path)
    proxy.fault = lambda request: None
    assert (registry.fetch("v1", tmp_path) / "head.safetensors").read_bytes() == FILES["head.safetensors"]
    (folder / "card.json").write_text("{}")
    proxy.fault = lambda request: Refused(400, "AccessDenied")
    with pytest.raises(RegistryUnavailable):
        registry.fetch("v1", tmp_path)


# ── two trainers at once, on a bad day ──
TRAINER = """
import sys
from perdure.errors import RegistryUnavailable, StalePromotion
from perdure.registry import Registry
registry = Registry(sys.argv[1])
rounds = int(sys.argv[3])
print("ready", flush=True)
sys.stdin.readline()
for number in range(1, rounds + 1):
    while True:
        try:
            registry.promote(sys.argv[2], number=number, reason=f"round {number}", by="judge")
            print("won", number, flush=True)
        except StalePromotion as error:
            assert "came too late" in str(error)
            print("lost", number, flush=True)
        except RegistryUnavailable:
            continue
        break
"""


def test_of_two_trainers_exactly_one_wins_each_number_whatever_becomes_of_the_answers(
    s3_server: Any, registry: Registry, direct: Registry, url: str, proxy: FaultProxy
) -> None:
    rounds, names = 25, ("v1", "v2")
    for name in names:
        direct.write(card(name), {"labels.json": b"[]"})
    lock, turn = threading.Lock(), [0]
    faults: tuple[Fault | None, ...] = (
        *(None, AnswerLost(), None, AnswerReplaced(), Refused(503, "SlowDown"), CutUpload(10), Slow(200, 0.005)),
    )

    def bad_day(request: Request) -> Fault | None:
        with lock:
            turn[0] += request.creates
            return faults[turn[0] % len(faults)] if request.creates else None

    proxy.fault = bad_day
    environment = {**os.environ, **s3_server.environment, "AWS_ENDPOINT_URL": proxy.endpoint}
    trainers = {
        name: subprocess.Popen(
            [sys.executable, "-c", TRAINER, url, name, str(rounds)],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in names
    }
    for trainer in trainers.values():
        assert trainer.stdout is not None
        assert trainer.stdout.readline() == "ready\n"
    said: dict[str, str] = {}

    def watch(name: str, trainer: subprocess.Popen[str]) -> None:
        said[name] = trainer.communicate("\n", timeout=120)[0]

    threads = [threading.Thread(target=watch, args=pair) for pair in trainers.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [trainer.returncode for trainer in trainers.values()] == [0, 0]
    won = {name: {int(line.split()[1]) for line in said[name].splitlines() if line[:3] == "won"} for name in names}
    lost = {name: {int(line.split()[1]) for line in said[name].splitlines() if line[:4] == "lost"} for name in names}
    assert won["v1"] | won["v2"] == set(range(1, rounds + 1))
    assert not won["v1"] & won["v2"]
    assert lost == {"v1": won["v2"], "v2": won["v1"]}
    log = direct.promotions()
    assert [entry.number for entry in log] == list(range(1, rounds + 1))
    assert {entry.number for entry in log if entry.version == "v1"} == won["v1"]
