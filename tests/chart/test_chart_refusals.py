"""What cannot work is refused, with a sentence that says what to do."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

ANONYMOUS = "anyone who reaches this address may do everything"
SASL = {"security": "SASL_SSL", "sasl": {"username": "u", "existingSecret": "s"}}
SQLITE: dict[str, Any] = {
    "stream": {"kind": "sqlite", "kafka": {"bootstrapServers": ""}},
    "registry": {"kind": "volume", "url": ""},
    "serving": {"replicas": 1},
}
STRIMZI = {"kind": "strimzi", "kafka": {"bootstrapServers": ""}}

REFUSALS: dict[str, tuple[dict[str, Any], str]] = {
    "no keys": ({"serving": {"keys": {"existingSecret": ""}}}, "make a key (perdure keys create web"),
    "keys and nobody asked": ({"serving": {"allowAnonymous": ANONYMOUS}}, "with keys nobody is anonymous"),
    "no brokers": ({"stream": {"kafka": {"bootstrapServers": ""}}}, "stream.kafka.bootstrapServers is empty"),
    "password without user": (
        {"stream": {"kafka": {"security": "SASL_SSL"}}},
        "stream.kafka.security is SASL_SSL, which needs a user and a password",
    ),
    "user without security": (
        {"stream": {"kafka": {"sasl": {"username": "u"}}}},
        "PLAINTEXT, which asks for no password",
    ),
    "certificates without TLS": ({"stream": {"kafka": {"tls": {"caSecret": "ca"}}}}, "PLAINTEXT, which has no TLS"),
    "brokers beside Strimzi's": ({"stream": {"kind": "strimzi"}}, "stream.kafka is set, but stream.kind is strimzi"),
    "security beside Strimzi's": (
        {"stream": {**STRIMZI, "kafka": {"bootstrapServers": "", **SASL}}},
        "stream.kind is strimzi",
    ),
    "more copies than brokers": (
        {"stream": {**STRIMZI, "strimzi": {"replicas": 1}}},
        "stream.strimzi.replication is 3, but there are 1 brokers",
    ),
    "more in step than copies": (
        {"stream": {**STRIMZI, "strimzi": {"minInSync": 4}}},
        "stream.strimzi.minInSync is 4, but a partition has 3 copies",
    ),
    "a topic that Strimzi makes": (
        {"stream": STRIMZI, "config": {"stream": {"create_topic": True}}},
        "config.stream.create_topic is set, but stream.kind is strimzi, whose operator makes the topic",
    ),
    "two on one file": ({**SQLITE, "serving": {"replicas": 2}}, "serving.replicas is 2: set serving.replicas to 1"),
    "scaled on one file": (
        {**SQLITE, "serving": {"replicas": 1, "autoscaling": {"enabled": True}}},
        "serving.replicas is 1 and serving.autoscaling is on",
    ),
    "spools before a file": (
        {**SQLITE, "serving": {"replicas": 1, "workload": "StatefulSet"}},
        "where nothing waits to be sent",
    ),
    "ingesters of a file": ({**SQLITE, "ingester": {"enabled": True}}, "sqlite, which has no partitions to share"),
    "more ingesters than partitions": (
        {"ingester": {"enabled": True, "replicas": 9}},
        "ingester.replicas is 9, but the topic has 8 partitions",
    ),
    "scaled past the partitions": (
        {"ingester": {"enabled": True, "keda": {"enabled": True, "maxReplicas": 9}}},
        "ingester.keda.maxReplicas is 9, but the topic has 8 partitions",
    ),
    "fewest above most ingesters": (
        {"ingester": {"enabled": True, "keda": {"enabled": True, "minReplicas": 5}}},
        "ingester.keda.minReplicas is 5, above ingester.keda.maxReplicas, 4",
    ),
    "nothing to scale": ({"ingester": {"keda": {"enabled": True}}}, "there is nothing to scale"),
    "a folder nobody shares": (
        {"registry": {"url": "var/registry"}},
        'registry.url is "var/registry", no object store',
    ),
    "no registry": ({"registry": {"url": ""}}, 'registry.url is "", no object store'),
    "a password in the URL": ({"registry": {"url": "s3://key:word@models"}}, "it would be in a ConfigMap"),
    "a secret in plain sight": (
        {"registry": {"env": [{"name": "AWS_SECRET_ACCESS_KEY", "value": "word"}]}},
        "registry.env gives AWS_SECRET_ACCESS_KEY a value in plain sight",
    ),
    "two registries": ({"registry": {"kind": "volume"}}, "registry.url is set, but registry.kind is volume"),
    "credentials for a volume": (
        {"registry": {"kind": "volume", "url": "", "credentials": {"existingSecret": "s"}}},
        "registry.kind is volume, which needs neither",
    ),
    "one node's volume on several": (
        {"registry": {"kind": "volume", "url": "", "volume": {"accessModes": ["ReadWriteOnce"]}}},
        "registry.volume.accessModes is ReadWriteOnce, so pods on several nodes could not share it",
    ),
    "two schedules": (
        {"trainer": {"kind": "CronJob"}, "config": {"trainer": {"cron": "0 2 * * *"}}},
        "config.trainer.cron is set, but trainer.kind is CronJob",
    ),
    "a trigger without a watcher": (
        {"trainer": {"kind": "CronJob"}, "config": {"trainer": {"min_new_labels": 5}}},
        "config.trainer.min_new_labels is set, but trainer.kind is CronJob",
    ),
    "fewest above most pods": (
        {"serving": {"autoscaling": {"enabled": True, "minReplicas": 11}}},
        "serving.autoscaling.minReplicas is 11, above serving.autoscaling.maxReplicas, 10",
    ),
    "a spool that is larger than its room": (
        {"config": {"spool": {"max_bytes": 3_000_000_000}}},
        "serving.spool.size is 2Gi, less than config.spool.max_bytes, 3000000000 bytes",
    ),
    "room that is smaller than the spool": (
        {"serving": {"spool": {"size": "900M"}}},
        "serving.spool.size is 900M, less than config.spool.max_bytes, 1000000000 bytes",
    ),
    "an ingress for nobody": ({"expose": {"kind": "ingress"}}, "expose.hosts is empty"),
    "a route without a gateway": ({"expose": {"kind": "httpRoute"}}, "expose.httpRoute.parentRefs is empty"),
    "hosts without a way in": ({"expose": {"hosts": ["a.example"]}}, "expose.hosts is set, but expose.kind is none"),
    "metrics behind a key": ({"monitoring": {"monitors": True}}, "but /metrics asks for a key"),
    "a setting of the chart's": (
        {"config": {"stream": {"url": "kafka://elsewhere:9092"}}},
        "config.stream.url is set, but the chart makes this setting: use the value stream.kind",
    ),
    "another setting of the chart's": (
        {"config": {"serving": {"keys": "keys.json"}}},
        "config.serving.keys is set, but the chart makes this setting: use the value serving.keys.existingSecret",
    ),
    "a variable of the chart's": (
        {"serving": {"env": [{"name": "PERDURE_SPOOL__PATH", "value": "/tmp/spool"}]}},
        "serving.env sets PERDURE_SPOOL__PATH, which the chart sets already",
    ),
    "a variable of the registry's": (
        {
            "registry": {"env": [{"name": "AWS_REGION", "value": "a"}]},
            "trainer": {"env": [{"name": "AWS_REGION", "value": "b"}]},
        },
        "trainer.env sets AWS_REGION, which the chart sets already",
    ),
    "a variable twice": (
        {"ingester": {"env": [{"name": "A", "value": "1"}, {"name": "A", "value": "2"}]}},
        "ingester.env sets A, which the chart sets already (or which stands twice)",
    ),
    "a store behind the fence": (
        {"registry": {"env": [{"name": "AWS_ENDPOINT_URL", "value": "http://objects:9000/"}]}},
        "the object store is at port 9000, which networkPolicy.registryPorts does not have",
    ),
    "a label of the chart's": (
        {"serving": {"podLabels": {"app.kubernetes.io/name": "x"}}},
        "serving.podLabels has app.kubernetes.io/name, a label by which the chart finds its pods",
    ),
    # The schema's own words.
    "an unknown value": ({"serving": {"replica": 3}}, "at '/serving': additional properties 'replica' not allowed"),
    "an unknown value deep down": (
        {"stream": {"kafka": {"tls": {"caFile": "x"}}}},
        "at '/stream/kafka/tls': additional properties 'caFile' not allowed",
    ),
    "an unknown part": ({"servings": {}}, "additional properties 'servings' not allowed"),
    "an unknown setting": (
        {"config": {"lora": {"ranks": 8}}},
        "at '/config/lora': additional properties 'ranks' not allowed",
    ),
    "a setting of a wrong kind": (
        {"config": {"lora": {"rank": "eight"}}},
        "at '/config/lora/rank': got string, want integer",
    ),
    "a setting out of range": (
        {"config": {"judge": {"margin": 2}}},
        "at '/config/judge/margin': maximum: got 2, want 1",
    ),
    "other words": ({"serving": {"allowAnonymous": "yes"}}, "at '/serving/allowAnonymous': value must be one of"),
    "an unknown kind": ({"trainer": {"kind": "Job"}}, "at '/trainer/kind': value must be one of"),
}


@pytest.fixture(scope="module")
def said(refused_all: Callable[[dict[str, dict[str, Any]]], dict[str, str]]) -> dict[str, str]:
    return refused_all({name: values for name, (values, _) in REFUSALS.items()})


@pytest.mark.parametrize("name", REFUSALS)
def test_refused_with_a_sentence(said: dict[str, str], name: str) -> None:
    assert REFUSALS[name][1] in said[name]


def test_nothing_is_assumed(refused: Callable[..., str]) -> None:
    """The chart alone says what it wants first."""
    assert "serving.keys.existingSecret is empty" in refused({}, least=False)


def test_secrets_are_not_repeated(said: dict[str, str]) -> None:
    assert "word" not in said["a password in the URL"].replace("password", "")
    assert " word" not in said["a secret in plain sight"]


def test_helm_3_refuses_the_same(refused: Callable[..., str]) -> None:
    names = ("no keys", "an unknown setting", "more ingesters than partitions")
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda name: refused(REFUSALS[name][0], version="3"), names))
    for name, sentence in zip(names, found, strict=True):
        assert REFUSALS[name][1] in sentence
