{{/* Values that cannot work together are refused with a sentence, before anything is made. */}}
{{- define "perdure.refusals" -}}
{{- $v := .Values -}}

{{- /* Who may call it. */ -}}
{{- if and (not $v.serving.keys.existingSecret) (not $v.serving.allowAnonymous) -}}
{{- fail "serving.keys.existingSecret is empty, so nobody would be asked who they are: make a key (perdure keys create web --scopes predict,feedback --file keys.json), put the file into a Secret (kubectl create secret generic perdure-keys --from-file=keys.json) and name it there; or, where something in front asks people who they are, set serving.allowAnonymous to 'anyone who reaches this address may do everything'" -}}
{{- end -}}
{{- if and $v.serving.keys.existingSecret $v.serving.allowAnonymous -}}
{{- fail "serving.keys.existingSecret and serving.allowAnonymous are both set: with keys nobody is anonymous, so leave one out" -}}
{{- end -}}

{{- /* Settings that the chart makes from other values. */ -}}
{{- $owned := dict
  "stream.url" "stream.kind" "stream.topic" "stream.topic" "stream.partitions" "stream.partitions" "stream.group" "stream.group"
  "stream.security" "stream.kafka.security" "stream.sasl_mechanism" "stream.kafka.sasl.mechanism"
  "stream.sasl_username" "stream.kafka.sasl.username" "stream.sasl_password_file" "stream.kafka.sasl.existingSecret"
  "stream.tls_ca_file" "stream.kafka.tls.caSecret" "stream.tls_cert_file" "stream.kafka.tls.clientSecret"
  "stream.tls_key_file" "stream.kafka.tls.clientSecret" "registry.url" "registry.kind and registry.url"
  "memory.path" "trainer.memory" "spool.path" "serving.spool" "ingest.path" "ingester.scratch"
  "ingest.shards" "ingester.enabled" "serving.host" "serving.service" "serving.port" "serving.service"
  "serving.grpc_port" "serving.grpc.enabled" "serving.keys" "serving.keys.existingSecret"
  "serving.allow_anonymous" "serving.allowAnonymous" "serving.tls_certificate" "serving.tls.existingSecret"
  "serving.tls_key" "serving.tls.existingSecret" "trainer.host" "monitoring" "trainer.port" "monitoring"
  "ingest.host" "monitoring" "ingest.port" "monitoring" -}}
{{- range $setting, $value := $owned -}}
{{- $section := index (splitList "." $setting) 0 -}}
{{- $name := index (splitList "." $setting) 1 -}}
{{- if hasKey (dig $section (dict) $v.config) $name -}}
{{- fail (printf "config.%s is set, but the chart makes this setting: use the value %s" $setting $value) -}}
{{- end -}}
{{- end -}}

{{- /* A name that stands twice would be refused by the API server, in worse words. */ -}}
{{- range $component := list "serving" "trainer" "ingester" -}}
{{- $taken := list "HOME" "TMPDIR" "MPLCONFIGDIR" "XDG_CACHE_HOME" -}}
{{- range $setting, $value := $owned -}}
{{- $taken = append $taken (printf "PERDURE_%s" (replace "." "__" $setting | upper)) -}}
{{- end -}}
{{- range $v.registry.env -}}
{{- $taken = append $taken .name -}}
{{- end -}}
{{- range (index $v $component).env -}}
{{- if has .name $taken -}}
{{- fail (printf "%s.env sets %s, which the chart sets already (or which stands twice): use the value that it is made from, or leave it out" $component .name) -}}
{{- end -}}
{{- $taken = append $taken .name -}}
{{- end -}}
{{- end -}}

{{- range $name, $labels := dict "commonLabels" $v.commonLabels "serving.podLabels" $v.serving.podLabels "trainer.podLabels" $v.trainer.podLabels "ingester.podLabels" $v.ingester.podLabels -}}
{{- range $label, $value := $labels -}}
{{- if regexMatch "^(app\\.kubernetes\\.io|helm\\.sh|perdure)/" $label -}}
{{- fail (printf "%s has %s, a label by which the chart finds its pods: use nameOverride for other names, or another label" $name $label) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- /* The stream. */ -}}
{{- if eq $v.stream.kind "kafka" -}}
{{- if not $v.stream.kafka.bootstrapServers -}}
{{- fail "stream.kafka.bootstrapServers is empty: give HOST:PORT,HOST:PORT of your brokers; or set stream.kind to strimzi (the chart makes a cluster, where the Strimzi operator is there) or to sqlite (one node, for trying things out)" -}}
{{- end -}}
{{- if hasPrefix "SASL" $v.stream.kafka.security -}}
{{- if or (not $v.stream.kafka.sasl.username) (not $v.stream.kafka.sasl.existingSecret) -}}
{{- fail (printf "stream.kafka.security is %s, which needs a user and a password: set stream.kafka.sasl.username, and stream.kafka.sasl.existingSecret to a Secret with the password" $v.stream.kafka.security) -}}
{{- end -}}
{{- else if or $v.stream.kafka.sasl.username $v.stream.kafka.sasl.existingSecret -}}
{{- fail (printf "stream.kafka.sasl is set, but stream.kafka.security is %s, which asks for no password: set it to SASL_SSL (or SASL_PLAINTEXT), or leave stream.kafka.sasl out" $v.stream.kafka.security) -}}
{{- end -}}
{{- if and (not (hasSuffix "SSL" $v.stream.kafka.security)) (or $v.stream.kafka.tls.caSecret $v.stream.kafka.tls.clientSecret) -}}
{{- fail (printf "stream.kafka.tls is set, but stream.kafka.security is %s, which has no TLS: set it to SSL or SASL_SSL, or leave stream.kafka.tls out" $v.stream.kafka.security) -}}
{{- end -}}
{{- else if or $v.stream.kafka.bootstrapServers (ne $v.stream.kafka.security "PLAINTEXT") -}}
{{- fail (printf "stream.kafka is set, but stream.kind is %s: set it to kafka, or leave stream.kafka out" $v.stream.kind) -}}
{{- end -}}
{{- if eq $v.stream.kind "strimzi" -}}
{{- range $name := list "create_topic" "replication" -}}
{{- if hasKey (dig "stream" (dict) $v.config) $name -}}
{{- fail (printf "config.stream.%s is set, but stream.kind is strimzi, whose operator makes the topic: use stream.strimzi, or leave it out" $name) -}}
{{- end -}}
{{- end -}}
{{- if gt (int $v.stream.strimzi.replication) (int $v.stream.strimzi.replicas) -}}
{{- fail (printf "stream.strimzi.replication is %d, but there are %d brokers (stream.strimzi.replicas): a partition has at most one copy on each" (int $v.stream.strimzi.replication) (int $v.stream.strimzi.replicas)) -}}
{{- end -}}
{{- if gt (int $v.stream.strimzi.minInSync) (int $v.stream.strimzi.replication) -}}
{{- fail (printf "stream.strimzi.minInSync is %d, but a partition has %d copies (stream.strimzi.replication): nothing would ever be acknowledged" (int $v.stream.strimzi.minInSync) (int $v.stream.strimzi.replication)) -}}
{{- end -}}
{{- end -}}
{{- if eq $v.stream.kind "sqlite" -}}
{{- if or (gt (int $v.serving.replicas) 1) $v.serving.autoscaling.enabled -}}
{{- fail (printf "stream.kind is sqlite, a file that one serving pod writes, but serving.replicas is %d%s: set serving.replicas to 1 (config.serving.processes uses more cores) and autoscaling off, or use Kafka" (int $v.serving.replicas) (ternary " and serving.autoscaling is on" "" $v.serving.autoscaling.enabled)) -}}
{{- end -}}
{{- if eq $v.serving.workload "StatefulSet" -}}
{{- fail "stream.kind is sqlite, where nothing waits to be sent, but serving.workload is StatefulSet: set it to Deployment, or use Kafka" -}}
{{- end -}}
{{- if $v.ingester.enabled -}}
{{- fail "ingester.enabled is true, but stream.kind is sqlite, which has no partitions to share: leave ingesters out, or use Kafka" -}}
{{- end -}}
{{- end -}}

{{- /* Ingesters. */ -}}
{{- if $v.ingester.enabled -}}
{{- $most := ternary $v.ingester.keda.maxReplicas $v.ingester.replicas $v.ingester.keda.enabled -}}
{{- if gt (int $most) (int $v.stream.partitions) -}}
{{- fail (printf "%s is %d, but the topic has %d partitions (stream.partitions): each ingester reads at least one, so more would stand idle. Lower it, or add partitions" (ternary "ingester.keda.maxReplicas" "ingester.replicas" $v.ingester.keda.enabled) (int $most) (int $v.stream.partitions)) -}}
{{- end -}}
{{- if and $v.ingester.keda.enabled (gt (int $v.ingester.keda.minReplicas) (int $v.ingester.keda.maxReplicas)) -}}
{{- fail (printf "ingester.keda.minReplicas is %d, above ingester.keda.maxReplicas, %d: raise the one or lower the other" (int $v.ingester.keda.minReplicas) (int $v.ingester.keda.maxReplicas)) -}}
{{- end -}}
{{- else if $v.ingester.keda.enabled -}}
{{- fail "ingester.keda.enabled is true, but ingester.enabled is not: there is nothing to scale" -}}
{{- end -}}

{{- /* The registry. */ -}}
{{- if eq $v.registry.kind "objectStore" -}}
{{- if not (regexMatch "^(s3|s3a|gs|az|azure|adl|abfs|abfss)://[^/]" $v.registry.url) -}}
{{- fail (printf "registry.url is %q, no object store that pods could share: give s3://BUCKET/PREFIX, gs://BUCKET/PREFIX or az://CONTAINER/PREFIX; or set registry.kind to volume" (regexReplaceAll "//.*@" $v.registry.url "//…@")) -}}
{{- end -}}
{{- if contains "@" $v.registry.url -}}
{{- fail "registry.url has an @ in it, as where a password stands: it would be in a ConfigMap. Put credentials into a Secret and name it in registry.credentials.existingSecret" -}}
{{- end -}}
{{- else -}}
{{- if $v.registry.url -}}
{{- fail "registry.url is set, but registry.kind is volume: set the kind to objectStore, or leave the URL out" -}}
{{- end -}}
{{- if or $v.registry.credentials.existingSecret $v.registry.env -}}
{{- fail "registry.credentials or registry.env is set, but registry.kind is volume, which needs neither: leave them out, or set the kind to objectStore" -}}
{{- end -}}
{{- if and (ne $v.stream.kind "sqlite") (not $v.registry.volume.existingClaim) (not (has "ReadWriteMany" $v.registry.volume.accessModes)) -}}
{{- fail (printf "registry.volume.accessModes is %s, so pods on several nodes could not share it: use ReadWriteMany with a storage class that has it, an object store, or the one node of stream.kind sqlite" (join ", " $v.registry.volume.accessModes)) -}}
{{- end -}}
{{- end -}}

{{- range $v.registry.env -}}
{{- if and (hasKey . "value") (regexMatch "SECRET|PASSWORD|TOKEN|ACCESS_KEY|ACCOUNT_KEY|SAS|CREDENTIAL" (upper .name)) -}}
{{- fail (printf "registry.env gives %s a value in plain sight: put it into a Secret and name that in registry.credentials.existingSecret" .name) -}}
{{- end -}}
{{- end -}}

{{- range $v.registry.env -}}
{{- $port := regexFind ":[0-9]+(/|$)" (.value | default "") | trimPrefix ":" | trimSuffix "/" -}}
{{- if and $v.networkPolicy.enabled (contains "ENDPOINT" .name) $port -}}
{{- $ports := list -}}
{{- range $v.networkPolicy.registryPorts -}}
{{- $ports = append $ports (int .) -}}
{{- end -}}
{{- if not (has (int $port) $ports) -}}
{{- fail (printf "registry.env says that the object store is at port %s, which networkPolicy.registryPorts does not have: no pod would reach it. Add the port, or set networkPolicy.enabled to false" $port) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- /* The trainer. */ -}}
{{- if eq $v.trainer.kind "CronJob" -}}
{{- range $name := list "cron" "interval_seconds" "min_new_labels" "poll_seconds" -}}
{{- if hasKey (dig "trainer" (dict) $v.config) $name -}}
{{- fail (printf "config.trainer.%s is set, but trainer.kind is CronJob, which runs one turn at each time of trainer.cronJob.schedule: leave it out, or set trainer.kind to Deployment" $name) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- /* Serving. */ -}}
{{- if and $v.serving.autoscaling.enabled (gt (int $v.serving.autoscaling.minReplicas) (int $v.serving.autoscaling.maxReplicas)) -}}
{{- fail (printf "serving.autoscaling.minReplicas is %d, above serving.autoscaling.maxReplicas, %d: raise the one or lower the other" (int $v.serving.autoscaling.minReplicas) (int $v.serving.autoscaling.maxReplicas)) -}}
{{- end -}}
{{- $spool := include "perdure.setting" (list . "spool" "max_bytes") | float64 -}}
{{- if gt $spool (include "perdure.bytes" $v.serving.spool.size | float64) -}}
{{- fail (printf "serving.spool.size is %s, less than config.spool.max_bytes, %.0f bytes: a pod that fills it would be evicted with its records. Raise the one or lower the other" $v.serving.spool.size $spool) -}}
{{- end -}}

{{- /* The way in. */ -}}
{{- if and (eq $v.expose.kind "ingress") (not $v.expose.hosts) -}}
{{- fail "expose.kind is ingress, but expose.hosts is empty: give the names under which the API is reached" -}}
{{- end -}}
{{- if and (eq $v.expose.kind "httpRoute") (not $v.expose.httpRoute.parentRefs) -}}
{{- fail "expose.kind is httpRoute, but expose.httpRoute.parentRefs is empty: name the Gateway that the route belongs to, [{name: public, namespace: gateways}]" -}}
{{- end -}}
{{- if and (eq $v.expose.kind "none") $v.expose.hosts -}}
{{- fail "expose.hosts is set, but expose.kind is none: set it to ingress or httpRoute, or leave the hosts out" -}}
{{- end -}}

{{- /* Metrics. */ -}}
{{- $open := eq (include "perdure.setting" (list . "serving" "open_metrics")) "true" -}}
{{- if and $v.monitoring.monitors $v.serving.keys.existingSecret (not $open) (not $v.monitoring.apiKey.existingSecret) -}}
{{- fail "monitoring.monitors is true, but /metrics asks for a key: name a Secret with one that has the scope metrics in monitoring.apiKey.existingSecret, or set config.serving.open_metrics to true" -}}
{{- end -}}
{{- end -}}

{{/* Bytes of a quantity such as 2Gi or 500M. */}}
{{- define "perdure.bytes" -}}
{{- $factor := get (dict "" "1" "k" "1e3" "M" "1e6" "G" "1e9" "T" "1e12" "Ki" "1024" "Mi" "1048576" "Gi" "1073741824" "Ti" "1099511627776") (regexFind "[A-Za-z]*$" .) -}}
{{- mulf (regexFind "^[0-9.]+" . | float64) ($factor | float64) -}}
{{- end -}}
