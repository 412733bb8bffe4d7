"""What each value changes."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import yaml

from perdure.config import Settings
from perdure.stream.kafka.topic import MAX_RECORD_BYTES

Render = Callable[..., Any]


def drained(found: Any) -> int:
    seconds: int = found.pods()["serving"]["spec"]["terminationGracePeriodSeconds"]
    return seconds


def test_the_least_makes_serving_and_one_trainer(render: Render) -> None:
    found = render()
    assert set(found.pods()) == {"serving", "trainer"}
    assert found.one("Deployment", "-serving")["spec"]["replicas"] == 2
    trainer = found.one("Deployment", "-trainer")["spec"]
    assert (trainer["replicas"], trainer["strategy"]) == (1, {"type": "Recreate"})
    assert found.one("Deployment", "-serving")["spec"]["strategy"]["rollingUpdate"] == {
        "maxSurge": 1,
        "maxUnavailable": 0,
    }


@pytest.mark.parametrize(
    ("values", "seconds"),
    [
        ({}, 5 + 5 + 10 + 15),
        ({"serving": {"preStopSeconds": 0}}, 5 + 10 + 15),
        ({"serving": {"preStopSeconds": 30}}, 30 + 5 + 10 + 15),
        ({"config": {"serving": {"lame_duck_seconds": 12.5}}}, 5 + 23 + 15),
        ({"config": {"serving": {"drain_seconds": 60, "lame_duck_seconds": 0}}}, 5 + 60 + 15),
    ],
)
def test_grace_follows_the_way_out(render: Render, values: Any, seconds: int) -> None:
    found = render(values)
    assert drained(found) == seconds
    waits = values.get("serving", {}).get("preStopSeconds", 5)
    stop = found.container("serving").get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command")
    assert stop == (["sleep", str(waits)] if waits else None)


def test_probes_ask_what_serving_answers(render: Render) -> None:
    serving = render({"serving": {"startupSeconds": 62}}).container("serving")
    for probe, path in (("startupProbe", "/startupz"), ("readinessProbe", "/readyz"), ("livenessProbe", "/healthz")):
        assert serving[probe]["httpGet"] == {"path": path, "port": "http", "scheme": "HTTP"}
    assert serving["startupProbe"]["failureThreshold"] * serving["startupProbe"]["periodSeconds"] == 65
    # Who follows readiness must hear its no before a pod that leaves stops taking requests.
    readiness = serving["readinessProbe"]
    assert readiness["periodSeconds"] * readiness["failureThreshold"] < Settings().serving.lame_duck_seconds


def test_spool_belongs_to_the_pod_or_to_a_claim(render: Render) -> None:
    found = render({"serving": {"spool": {"size": "3Gi"}}})
    spec = found.pods()["serving"]["spec"]
    assert {"name": "spool", "emptyDir": {"sizeLimit": "3Gi"}} in spec["volumes"]
    found = render({"serving": {"workload": "StatefulSet", "spool": {"size": "3Gi", "storageClass": "fast"}}})
    assert not [volume for volume in found.pods()["serving"]["spec"]["volumes"] if volume["name"] == "spool"]
    serving = found.one("StatefulSet", "-serving")["spec"]
    [claim] = serving["volumeClaimTemplates"]
    assert claim["metadata"]["name"] == "spool"
    assert claim["spec"]["storageClassName"] == "fast"
    assert claim["spec"]["resources"]["requests"] == {"storage": "3Gi"}
    # What is unsent must not go when pods do.
    assert "persistentVolumeClaimRetentionPolicy" not in serving
    assert found.one("Service", serving["serviceName"])["spec"]["clusterIP"] == "None"
    assert found.environment("serving")["PERDURE_SPOOL__PATH"] == "/var/lib/perdure/spool"


def test_working_folder_can_be_written(render: Render) -> None:
    """Versions of a remote registry are cached below it, and the root is read-only."""
    for component in ("serving", "trainer"):
        container = render().container(component)
        assert container["workingDir"] == "/var/lib/perdure"
        mounts = {mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")}
        assert {"/tmp", "/var/lib/perdure/var"} <= mounts
        environment = render().environment(component)
        assert environment["HOME"] == "/tmp"
        assert environment["MPLCONFIGDIR"].startswith("/tmp/")


def test_keys_come_from_a_secret(render: Render) -> None:
    found = render({"serving": {"keys": {"existingSecret": "ours", "key": "live.json"}}})
    assert found.environment("serving")["PERDURE_SERVING__KEYS"] == "/etc/perdure-keys/keys.json"
    [volume] = [each for each in found.pods()["serving"]["spec"]["volumes"] if each["name"] == "keys"]
    assert volume["secret"]["secretName"] == "ours"
    assert volume["secret"]["items"] == [{"key": "live.json", "path": "keys.json"}]
    [mount] = [each for each in found.container("serving")["volumeMounts"] if each["name"] == "keys"]
    assert "subPath" not in mount, "such a file would not follow its Secret"
    words = "anyone who reaches this address may do everything"
    found = render({"serving": {"keys": {"existingSecret": ""}, "allowAnonymous": words}})
    assert found.environment("serving")["PERDURE_SERVING__ALLOW_ANONYMOUS"] == words
    assert "PERDURE_SERVING__KEYS" not in found.environment("serving")


def test_tls_in_the_pod_reaches_probes_and_tests(render: Render) -> None:
    found = render({"serving": {"tls": {"existingSecret": "certificate"}}})
    serving = found.container("serving")
    assert {serving[probe]["httpGet"]["scheme"] for probe in ("startupProbe", "readinessProbe", "livenessProbe")} == {
        "HTTPS"
    }
    assert found.environment("serving")["PERDURE_SERVING__TLS_KEY"] == "/etc/perdure-tls/tls.key"
    [test] = found.of("Pod")
    assert {"name": "URL", "value": "https://live-perdure-serving:80"} in test["spec"]["containers"][0]["env"]


def test_grpc_opens_a_port_everywhere(render: Render) -> None:
    found = render({"serving": {"grpc": {"enabled": True}}})
    assert {"name": "grpc", "containerPort": 8001} in found.container("serving")["ports"]
    assert found.environment("serving")["PERDURE_SERVING__GRPC_PORT"] == "8001"
    assert [port["name"] for port in found.one("Service", "-serving")["spec"]["ports"]] == ["http", "grpc"]
    policy = found.one("NetworkPolicy", "-serving")["spec"]["ingress"][0]
    assert policy["ports"] == [{"port": "http"}, {"port": "grpc"}]
    assert "PERDURE_SERVING__GRPC_PORT" not in render().environment("serving")


def test_autoscaler_owns_the_number_of_pods(render: Render) -> None:
    found = render({"serving": {"autoscaling": {"enabled": True, "minReplicas": 3, "maxReplicas": 9}}})
    assert "replicas" not in found.one("Deployment", "-serving")["spec"]
    scaler = found.one("HorizontalPodAutoscaler")["spec"]
    assert (scaler["minReplicas"], scaler["maxReplicas"]) == (3, 9)
    assert scaler["scaleTargetRef"]["kind"] == "Deployment"
    assert scaler["metrics"][0]["resource"]["target"]["averageUtilization"] == 70
    values = {"autoscaling": {"enabled": True, "metric": "inFlight", "inFlight": 24}, "workload": "StatefulSet"}
    scaler = render({"serving": values}).one("HorizontalPodAutoscaler")["spec"]
    assert scaler["scaleTargetRef"] == {"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "live-perdure-serving"}
    [metric] = scaler["metrics"]
    assert metric["pods"]["metric"]["name"] == "perdure_http_requests_in_flight"
    assert metric["pods"]["target"]["averageValue"] == "24"
    assert not render().of("HorizontalPodAutoscaler")


def test_disruption_budget_only_where_one_may_go(render: Render) -> None:
    budget = render().one("PodDisruptionBudget")["spec"]
    assert (budget["maxUnavailable"], budget["unhealthyPodEvictionPolicy"]) == (1, "AlwaysAllow")
    assert not render({"serving": {"replicas": 1}}).of("PodDisruptionBudget"), "it would keep nodes from being drained"
    assert not render({"serving": {"pdb": {"enabled": False}}}).of("PodDisruptionBudget")


def test_spread_by_zone_and_node(render: Render) -> None:
    spread = render({"serving": {"topologySpread": {"zone": "DoNotSchedule", "node": "Off"}}}).pods()["serving"][
        "spec"
    ]["topologySpreadConstraints"]
    assert [(each["topologyKey"], each["whenUnsatisfiable"]) for each in spread] == [
        ("topology.kubernetes.io/zone", "DoNotSchedule")
    ]
    assert spread[0]["labelSelector"]["matchLabels"]["app.kubernetes.io/component"] == "serving"
    assert len(render().pods()["serving"]["spec"]["topologySpreadConstraints"]) == 2


def test_trainer_as_a_cron_job(render: Render) -> None:
    found = render(
        {
            "trainer": {"kind": "CronJob", "cronJob": {"schedule": "0 2 * * *", "suspend": True}, "graceSeconds": 100},
            "config": {"trainer": {"turn_timeout_seconds": 7200}},
        }
    )
    job = found.one("CronJob")["spec"]
    assert (job["schedule"], job["suspend"], job["concurrencyPolicy"]) == ("0 2 * * *", True, "Forbid")
    assert job["jobTemplate"]["spec"]["activeDeadlineSeconds"] == 7200 + 100 + 600
    trainer = found.container("trainer")
    assert trainer["command"] == ["perdure", "train", "--once", "--config", "/etc/perdure/perdure.yaml"]
    # It is gone before anybody could ask it.
    assert not {"ports", "livenessProbe", "startupProbe"} & trainer.keys()
    assert "PERDURE_TRAINER__PORT" not in found.environment("trainer")
    assert found.pods()["trainer"]["spec"]["restartPolicy"] == "Never"
    assert len(found.of("Deployment")) == 1


@pytest.mark.parametrize("kind", ["Deployment", "CronJob"])
def test_a_trainer_in_maintenance_has_all_but_trains_nothing(kind: str, render: Render) -> None:
    claim = {"backup": {"existingClaim": "backups"}}
    working = render({"trainer": {"kind": kind, **claim}})
    found = render({"trainer": {"kind": kind, "maintenance": True, **claim}})
    assert found.one("Deployment", "-trainer")["spec"]["replicas"] == 1
    assert not found.of("CronJob")
    trainer, before = found.container("trainer"), working.container("trainer")
    assert trainer["command"][:2] == ["python", "-c"]
    compile(trainer["command"][2], "command", "exec")
    assert "perdure" not in " ".join(trainer["command"])
    assert not {"ports", "livenessProbe", "startupProbe"} & trainer.keys()
    assert trainer["volumeMounts"] == before["volumeMounts"]
    assert {"name": "backup", "mountPath": "/var/lib/perdure/backup"} in trainer["volumeMounts"]
    [volume] = [each for each in found.pods()["trainer"]["spec"]["volumes"] if each["name"] == "backup"]
    assert volume["persistentVolumeClaim"] == {"claimName": "backups"}
    assert "backup" not in str(render({"trainer": {"kind": kind}}).pods()["trainer"])


def test_only_the_trainer_gets_a_gpu(render: Render) -> None:
    values = {
        "trainer": {
            "gpu": {"enabled": True, "resource": "amd.com/gpu"},
            "nodeSelector": {"accelerator": "yes"},
            "tolerations": [{"key": "gpu", "operator": "Exists"}],
        },
        "ingester": {"enabled": True},
    }
    found = render(values)
    pods = {component: json.dumps(pod) for component, pod in found.pods().items()}
    assert [component for component, text in pods.items() if "amd.com/gpu" in text] == ["trainer"]
    assert [component for component, text in pods.items() if "accelerator" in text] == ["trainer"]
    assert [component for component, text in pods.items() if "tolerations" in text] == ["trainer"]
    trainer = found.container("trainer")
    assert trainer["resources"]["limits"]["amd.com/gpu"] == "1"
    assert trainer["resources"]["limits"]["memory"] == "8Gi"
    assert trainer["image"].startswith("perdure-trainer-gpu:")
    assert found.container("ingester")["image"].startswith("perdure-trainer:")


def test_ingesters_share_the_topic(render: Render) -> None:
    found = render({"ingester": {"enabled": True, "replicas": 3}})
    ingester = found.one("StatefulSet", "-ingester")["spec"]
    assert ingester["replicas"] == 3
    assert ingester["persistentVolumeClaimRetentionPolicy"] == {"whenScaled": "Delete", "whenDeleted": "Delete"}
    assert "shards: true" in found.settings()
    assert found.container("ingester")["command"] == ["perdure", "ingest", "--config", "/etc/perdure/perdure.yaml"]
    assert "shards: false" in render().settings()
    assert not render().of("StatefulSet")


def test_keda_scales_by_the_lag_of_memory(render: Render) -> None:
    found = render(
        {
            "ingester": {"enabled": True, "keda": {"enabled": True, "maxReplicas": 8, "lagThreshold": 5}},
            "stream": {
                "group": "readers",
                "topic": "events",
                "kafka": {
                    "security": "SASL_SSL",
                    "sasl": {"username": "u", "existingSecret": "p", "key": "word", "mechanism": "SCRAM-SHA-256"},
                    "tls": {"caSecret": "ca", "clientSecret": "client"},
                },
            },
        }
    )
    assert "replicas" not in found.one("StatefulSet", "-ingester")["spec"]
    scaled = found.one("ScaledObject")["spec"]
    assert scaled["scaleTargetRef"]["name"] == found.one("StatefulSet", "-ingester")["metadata"]["name"]
    assert scaled["maxReplicaCount"] == 8
    [trigger] = scaled["triggers"]
    assert trigger["metadata"] == {
        "bootstrapServers": "kafka:9092",
        "topic": "events",
        "consumerGroup": "readers",
        "lagThreshold": "5",
        "offsetResetPolicy": "earliest",
        "tls": "enable",
        "sasl": "scram_sha256",
    }
    authentication = found.one("TriggerAuthentication")
    assert trigger["authenticationRef"] == {"name": authentication["metadata"]["name"]}
    secrets = {each["parameter"]: (each["name"], each["key"]) for each in authentication["spec"]["secretTargetRef"]}
    assert secrets == {
        "password": ("p", "word"),
        "ca": ("ca", "ca.crt"),
        "cert": ("client", "tls.crt"),
        "key": ("client", "tls.key"),
    }
    [name] = authentication["spec"]["env"]
    assert name["containerName"] == "ingester"
    assert found.environment("ingester")[name["name"]] == "u"
    # Without a password and TLS there is nothing to say.
    plain = render({"ingester": {"enabled": True, "keda": {"enabled": True}}})
    assert not plain.of("TriggerAuthentication")
    assert "authenticationRef" not in plain.one("ScaledObject")["spec"]["triggers"][0]


def test_strimzi_makes_cluster_topic_and_user(render: Render) -> None:
    found = render({"stream": {"kind": "strimzi", "kafka": {"bootstrapServers": ""}, "partitions": 6}})
    cluster = found.one("Kafka")["metadata"]["name"]
    [listener] = found.one("Kafka")["spec"]["kafka"]["listeners"]
    assert (listener["port"], listener["tls"], listener["authentication"]) == (9093, True, {"type": "scram-sha-512"})
    for kind in ("KafkaNodePool", "KafkaTopic", "KafkaUser"):
        assert found.one(kind)["metadata"]["labels"]["strimzi.io/cluster"] == cluster
    topic = found.one("KafkaTopic")["spec"]
    assert (topic["topicName"], topic["partitions"], topic["replicas"]) == ("perdure.events", 6, 3)
    assert topic["config"]["retention.ms"] == 168 * 3600 * 1000
    user = found.one("KafkaUser")["metadata"]["name"]
    [volume] = [each for each in found.pods()["serving"]["spec"]["volumes"] if each["name"] == "kafka"]
    assert [source["secret"]["name"] for source in volume["projected"]["sources"]] == [
        user,
        f"{cluster}-cluster-ca-cert",
    ]
    assert f"sasl_username: {user}" in found.settings()
    assert f"kafka://{cluster}-kafka-bootstrap:9093" in found.settings()
    acls = {
        (each["resource"]["type"], each["resource"]["name"]): each["operations"]
        for each in found.one("KafkaUser")["spec"]["authorization"]["acls"]
    }
    assert acls == {
        ("topic", "perdure.events"): ["Describe", "Read", "Write"],
        ("group", "perdure"): ["Describe", "Read"],
    }
    for kind in ("Kafka", "KafkaNodePool", "KafkaTopic"):
        assert found.one(kind)["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
    dropped = render(
        {
            "stream": {"kind": "strimzi", "kafka": {"bootstrapServers": ""}, "strimzi": {"keep": False}},
            "config": {"stream": {"dead_letter_topic": "dead"}},
        }
    )
    assert "annotations" not in dropped.one("Kafka")["metadata"]
    assert sorted(each["spec"]["topicName"] for each in dropped.of("KafkaTopic")) == ["dead", "perdure.events"]
    assert len(dropped.one("KafkaUser")["spec"]["authorization"]["acls"]) == 3


def test_topic_takes_the_longest_record(render: Render) -> None:
    found = render({"stream": {"kind": "strimzi", "kafka": {"bootstrapServers": ""}}})
    assert found.one("KafkaTopic")["spec"]["config"]["max.message.bytes"] == MAX_RECORD_BYTES


def test_passwords_of_kafka_are_files(render: Render) -> None:
    values = {
        "stream": {
            "kafka": {
                "security": "SASL_SSL",
                "sasl": {"username": "u", "existingSecret": "passwords", "key": "mine"},
                "tls": {"caSecret": "ca", "caKey": "bundle.pem"},
            }
        },
        "ingester": {"enabled": True},
    }
    found = render(values)
    for component in ("serving", "trainer", "ingester"):
        [volume] = [each for each in found.pods()[component]["spec"]["volumes"] if each["name"] == "kafka"]
        files = {
            item["path"]: (source["secret"]["name"], item["key"])
            for source in volume["projected"]["sources"]
            for item in source["secret"]["items"]
        }
        assert files == {"password": ("passwords", "mine"), "ca.crt": ("ca", "bundle.pem")}
        assert {"name": "kafka", "mountPath": "/etc/perdure-kafka", "readOnly": True} in found.container(component)[
            "volumeMounts"
        ]
    assert not [each for each in render().pods()["serving"]["spec"]["volumes"] if each["name"] == "kafka"]


def test_sqlite_keeps_all_pods_on_one_node(cases: dict[tuple[str, str], Any]) -> None:
    for case in ("sqlite-one-node", "small"):
        found = cases[case, "4"]
        pods = found.pods()
        for component in ("serving", "trainer"):
            [term] = pods[component]["spec"]["affinity"]["podAffinity"][
                "requiredDuringSchedulingIgnoredDuringExecution"
            ]
            assert term["topologyKey"] == "kubernetes.io/hostname"
            wanted = term["labelSelector"]["matchLabels"]
            assert all(wanted.items() <= pods[each]["metadata"]["labels"].items() for each in pods)
            claims = [
                volume["persistentVolumeClaim"]["claimName"]
                for volume in pods[component]["spec"]["volumes"]
                if "persistentVolumeClaim" in volume
            ]
            assert {"live-perdure-stream", "live-perdure-registry"} <= set(claims)
        assert found.one("Deployment", "-serving")["spec"]["strategy"] == {"type": "Recreate"}
        assert all(claim["spec"]["accessModes"] == ["ReadWriteOnce"] for claim in found.of("PersistentVolumeClaim"))


def test_registry_on_a_volume_or_an_object_store(render: Render) -> None:
    volume = {"registry": {"kind": "volume", "url": "", "volume": {"size": "7Gi", "storageClass": "nfs"}}}
    found = render(volume)
    claim = found.one("PersistentVolumeClaim", "-registry")
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    assert claim["spec"]["resources"]["requests"]["storage"] == "7Gi"
    assert claim["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
    assert "url: /var/lib/perdure/registry" in found.settings()
    volume["registry"]["volume"] = {"existingClaim": "theirs"}  # type: ignore[dict-item]
    assert not [each for each in render(volume).of("PersistentVolumeClaim") if "registry" in each["metadata"]["name"]]
    found = render(
        {"registry": {"credentials": {"existingSecret": "keys"}, "env": [{"name": "AWS_REGION", "value": "x"}]}}
    )
    for component in ("serving", "trainer"):
        assert found.container(component)["envFrom"] == [{"secretRef": {"name": "keys"}}]
        assert found.environment(component)["AWS_REGION"] == "x"
    assert "envFrom" not in render().container("serving")


def test_accounts_have_names_and_annotations(render: Render) -> None:
    found = render({"serving": {"serviceAccount": {"annotations": {"role": "reader"}}}})
    assert found.one("ServiceAccount", "-serving")["metadata"]["annotations"] == {"role": "reader"}
    assert "annotations" not in found.one("ServiceAccount", "-trainer")["metadata"]
    assert len(found.of("ServiceAccount")) == 2
    found = render({"serving": {"serviceAccount": {"create": False, "name": "theirs"}}})
    assert found.pods()["serving"]["spec"]["serviceAccountName"] == "theirs"
    assert len(found.of("ServiceAccount")) == 1
    found = render({"serving": {"serviceAccount": {"create": False}}})
    assert found.pods()["serving"]["spec"]["serviceAccountName"] == "default"


def test_images_by_registry_tag_and_digest(render: Render) -> None:
    assert render().container("serving")["image"] == "perdure-serving:0.1.0"
    digest = "sha256:" + "a" * 64
    values = {
        "image": {"registry": "r.example.com/team/", "tag": "9", "pullSecrets": [{"name": "pull"}]},
        "serving": {"image": {"digest": digest}},
        "trainer": {"image": {"tag": "10"}},
    }
    found = render(values)
    assert found.container("serving")["image"] == f"r.example.com/team/perdure-serving@{digest}"
    assert found.container("trainer")["image"] == "r.example.com/team/perdure-trainer:10"
    assert found.pods()["trainer"]["spec"]["imagePullSecrets"] == [{"name": "pull"}]


def test_ways_in(render: Render) -> None:
    assert not [each for each in render().all if each["kind"] in ("Ingress", "HTTPRoute")]
    expose = {"kind": "ingress", "hosts": ["a.example", "b.example"], "ingress": {"tlsSecret": "certificate"}}
    found = render({"expose": expose})
    ingress = found.one("Ingress")["spec"]
    assert [rule["host"] for rule in ingress["rules"]] == ["a.example", "b.example"]
    assert ingress["tls"] == [{"secretName": "certificate", "hosts": ["a.example", "b.example"]}]
    backend = ingress["rules"][0]["http"]["paths"][0]["backend"]["service"]
    assert backend["name"] == found.one("Service", "-serving")["metadata"]["name"]
    expose = {"kind": "httpRoute", "hosts": ["a.example"], "httpRoute": {"parentRefs": [{"name": "public"}]}}
    route = render({"expose": expose, "serving": {"service": {"port": 8080}}}).one("HTTPRoute")["spec"]
    assert route["parentRefs"] == [{"name": "public"}]
    assert route["rules"][0]["backendRefs"] == [{"name": "live-perdure-serving", "port": 8080}]


def test_network_is_closed_but_for_what_is_needed(render: Render) -> None:
    def ports(rules: list[dict[str, Any]]) -> set[Any]:
        return {port["port"] for rule in rules for port in rule["ports"]}

    found = render({"stream": {"kafka": {"bootstrapServers": "a:9092,b:9094"}}, "ingester": {"enabled": True}})
    deny = found.one("NetworkPolicy", "-deny")["spec"]
    assert deny["policyTypes"] == ["Ingress", "Egress"]
    assert not {"ingress", "egress"} & deny.keys()
    every = [pod["metadata"]["labels"] for pod in found.pods().values()] + [found.one("Pod")["metadata"]["labels"]]
    assert all(deny["podSelector"]["matchLabels"].items() <= labels.items() for labels in every)
    for component in ("serving", "trainer", "ingester"):
        policy = found.one("NetworkPolicy", f"-{component}")["spec"]
        assert ports(policy["egress"]) == {53, 9092, 9094, 443, 80, 988}
        assert ports(policy["ingress"]) == {"http"} if component == "serving" else {"metrics"}
    test = found.one("NetworkPolicy", "-test")["spec"]
    assert "ingress" not in test
    assert test["egress"][-1]["to"][0]["podSelector"]["matchLabels"]["app.kubernetes.io/component"] == "serving"
    # With credentials of its own nobody asks the cloud's address for them.
    found = render({"registry": {"credentials": {"existingSecret": "keys"}}, "trainer": {"kind": "CronJob"}})
    assert ports(found.one("NetworkPolicy", "-serving")["spec"]["egress"]) == {53, 9092, 443}
    assert "ingress" not in found.one("NetworkPolicy", "-trainer")["spec"]
    assert not render({"networkPolicy": {"enabled": False}}).of("NetworkPolicy")
    volume = {"kind": "volume", "url": ""}
    sqlite = {"kind": "sqlite", "kafka": {"bootstrapServers": ""}}
    found = render({"registry": volume, "stream": sqlite, "serving": {"replicas": 1}})
    assert ports(found.one("NetworkPolicy", "-trainer")["spec"]["egress"]) == {53}


def test_network_peers_are_taken_over(cases: dict[tuple[str, str], Any]) -> None:
    found = cases["own-object-store", "4"]
    serving = found.one("NetworkPolicy", "-serving")["spec"]
    names = [
        peer["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"]
        for rule in serving["egress"]
        for peer in rule.get("to", [])
        if "namespaceSelector" in peer
    ]
    assert names == ["kafka", "storage"]
    [rule] = serving["ingress"]
    assert rule["from"][0]["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": "web"}
    # Prometheus reads serving's metrics at the port of its requests.
    assert rule["from"][1]["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": "monitoring"}
    assert rule["from"][2]["podSelector"]["matchLabels"]["app.kubernetes.io/component"] == "test"
    assert [port["port"] for port in serving["egress"][1]["ports"]] == [9095, 9092]
    assert serving["egress"][-1]["ports"] == [{"port": 4318}]
    strimzi = cases["strimzi-keda", "4"].one("NetworkPolicy", "-trainer")["spec"]["egress"][1]
    assert strimzi["to"][0]["podSelector"]["matchLabels"] == {"strimzi.io/cluster": "live-perdure-kafka"}


def test_monitors_find_what_has_metrics(cases: dict[tuple[str, str], Any]) -> None:
    found = cases["strimzi-keda", "4"]
    assert found.one("ServiceMonitor")["metadata"]["labels"]["release"] == "prometheus"
    [endpoint] = found.one("ServiceMonitor")["spec"]["endpoints"]
    assert (endpoint["port"], endpoint["path"]) == ("http", "/metrics")
    wanted = found.one("ServiceMonitor")["spec"]["selector"]["matchLabels"].items()
    hit = [each["metadata"]["name"] for each in found.of("Service") if wanted <= each["metadata"]["labels"].items()]
    assert hit == ["live-perdure-serving"], "the pods behind it would be asked twice"
    pods = found.one("PodMonitor")["spec"]
    assert pods["selector"]["matchExpressions"][0]["values"] == ["trainer", "ingester"]
    for component in ("trainer", "ingester"):
        assert {"name": "metrics", "containerPort": 9100} in found.container(component)["ports"]
    [endpoint] = cases["monitored-with-key", "4"].one("ServiceMonitor")["spec"]["endpoints"]
    assert endpoint["authorization"]["credentials"] == {"name": "perdure-prometheus", "key": "api-key"}
    [endpoint] = cases["tls-to-the-pod", "4"].one("ServiceMonitor")["spec"]["endpoints"]
    assert endpoint["scheme"] == "https"
    assert endpoint["tlsConfig"]["ca"]["secret"]["name"] == "perdure-certificate"


def test_rules_and_dashboards_are_those_of_the_files(cases: dict[tuple[str, str], Any], documents: Any) -> None:
    found = cases["strimzi-keda", "4"]
    rules = sorted((documents.CHART / "rules").glob("*.yaml"))
    assert rules
    for file in rules:
        spec = found.one("PrometheusRule", f"-{file.stem}")["spec"]
        assert spec == yaml.safe_load(file.read_text(encoding="utf-8"))
    dashboards = sorted((documents.CHART / "dashboards").glob("*.json"))
    assert dashboards
    for file in dashboards:
        made = found.one("ConfigMap", f"-dashboard-{file.stem}")
        assert made["metadata"]["labels"]["grafana_dashboard"] == "1"
        assert json.loads(made["data"][file.name]) == json.loads(file.read_text(encoding="utf-8"))
    assert not cases["kafka-s3", "4"].of("PrometheusRule")


def test_pods_are_new_when_settings_are(render: Render) -> None:
    def checksum(values: Any) -> str:
        found: str = render(values).pods()["trainer"]["metadata"]["annotations"]["checksum/config"]
        return found

    assert checksum({}) != checksum({"config": {"lora": {"rank": 4}}})
    assert checksum({}) == checksum({"serving": {"replicas": 7}})


def test_pods_take_what_is_said_of_them(render: Render) -> None:
    said = {
        "nodeSelector": {"disk": "ssd"},
        "tolerations": [{"key": "a", "operator": "Exists"}],
        "affinity": {"nodeAffinity": {}},
        "priorityClassName": "high",
        "podAnnotations": {"note": "x"},
        "podLabels": {"azure.workload.identity/use": "true"},
        "env": [{"name": "A", "value": "b"}],
    }
    found = render({"serving": said, "trainer": said, "ingester": {**said, "enabled": True}})
    for component, pod in found.pods().items():
        spec = pod["spec"]
        assert all(
            spec[name] == said[name] for name in ("nodeSelector", "tolerations", "affinity", "priorityClassName")
        )
        assert pod["metadata"]["annotations"]["note"] == "x"
        assert pod["metadata"]["labels"]["azure.workload.identity/use"] == "true"
        assert found.environment(component)["A"] == "b"


def test_names_follow_the_release(render: Render) -> None:
    assert render({"fullnameOverride": "classifier"}).one("Deployment", "-serving")["metadata"]["name"] == (
        "classifier-serving"
    )
    assert render({"nameOverride": "live"}).one("Deployment", "-serving")["metadata"]["name"] == "live-serving"
    assert all(each["metadata"]["labels"]["a"] == "b" for each in render({"commonLabels": {"a": "b"}}).all)
