{{/* The settings file of all components, and what a value of it is. */}}

{{/* The setting (list $ "section" "name"), as given in `config`, or its default. */}}
{{- define "perdure.setting" -}}
{{- $root := index . 0 -}}
{{- $section := index . 1 -}}
{{- $name := index . 2 -}}
{{- $given := dig $section $name nil $root.Values.config -}}
{{- if kindIs "invalid" $given -}}
{{- $defaults := $root.Files.Get "files/defaults.json" | fromJson -}}
{{- index $defaults (printf "%s.%s" $section $name) -}}
{{- else -}}
{{- $given -}}
{{- end -}}
{{- end -}}

{{- define "perdure.kafkaServers" -}}
{{- if eq .Values.stream.kind "strimzi" -}}
{{- printf "%s-kafka-bootstrap:9093" (include "perdure.kafkaCluster" .) -}}
{{- else -}}
{{- .Values.stream.kafka.bootstrapServers -}}
{{- end -}}
{{- end -}}

{{- define "perdure.kafkaCluster" -}}
{{- .Values.stream.strimzi.cluster | default (printf "%s-kafka" (include "perdure.fullname" .)) -}}
{{- end -}}

{{/* `kafka` where there are brokers, whoever runs them. */}}
{{- define "perdure.usesKafka" -}}
{{- if ne .Values.stream.kind "sqlite" -}}true{{- end -}}
{{- end -}}

{{- define "perdure.security" -}}
{{- if eq .Values.stream.kind "strimzi" -}}SASL_SSL{{- else -}}{{ .Values.stream.kafka.security }}{{- end -}}
{{- end -}}

{{/* perdure.yaml: what is given in `config`, and what follows from the other values. */}}
{{- define "perdure.settings" -}}
{{- $derived := dict "registry" (dict) "stream" (dict) "ingest" (dict "shards" .Values.ingester.enabled) -}}
{{- if eq .Values.registry.kind "volume" -}}
{{- $_ := set $derived.registry "url" "/var/lib/perdure/registry" -}}
{{- else -}}
{{- $_ := set $derived.registry "url" .Values.registry.url -}}
{{- end -}}
{{- $stream := $derived.stream -}}
{{- if eq .Values.stream.kind "sqlite" -}}
{{- $_ := set $stream "url" "sqlite:/var/lib/perdure/stream/stream.db" -}}
{{- else -}}
{{- $_ := set $stream "url" (printf "kafka://%s" (include "perdure.kafkaServers" .)) -}}
{{- $_ := set $stream "topic" .Values.stream.topic -}}
{{- $_ := set $stream "partitions" (int .Values.stream.partitions) -}}
{{- $_ := set $stream "group" .Values.stream.group -}}
{{- $security := include "perdure.security" . -}}
{{- $_ := set $stream "security" $security -}}
{{- if eq .Values.stream.kind "strimzi" -}}
{{- $_ := set $stream "create_topic" false -}}
{{- $_ := set $stream "sasl_mechanism" "SCRAM-SHA-512" -}}
{{- $_ := set $stream "sasl_username" (include "perdure.kafkaUser" .) -}}
{{- else if hasPrefix "SASL" $security -}}
{{- $_ := set $stream "sasl_mechanism" .Values.stream.kafka.sasl.mechanism -}}
{{- $_ := set $stream "sasl_username" .Values.stream.kafka.sasl.username -}}
{{- end -}}
{{- if hasPrefix "SASL" $security -}}
{{- $_ := set $stream "sasl_password_file" "/etc/perdure-kafka/password" -}}
{{- end -}}
{{- if hasSuffix "SSL" $security -}}
{{- if or (eq .Values.stream.kind "strimzi") .Values.stream.kafka.tls.caSecret -}}
{{- $_ := set $stream "tls_ca_file" "/etc/perdure-kafka/ca.crt" -}}
{{- end -}}
{{- if and (eq .Values.stream.kind "kafka") .Values.stream.kafka.tls.clientSecret -}}
{{- $_ := set $stream "tls_cert_file" "/etc/perdure-kafka/tls.crt" -}}
{{- $_ := set $stream "tls_key_file" "/etc/perdure-kafka/tls.key" -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- mergeOverwrite (deepCopy .Values.config) $derived | toYaml -}}
{{- end -}}

{{- define "perdure.kafkaUser" -}}
{{- printf "%s-perdure" (include "perdure.kafkaCluster" .) | trunc 63 | trimSuffix "-" -}}
{{- end -}}
