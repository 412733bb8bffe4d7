{{/* What the pods of all components have in common. */}}

{{- define "perdure.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "perdure.containerSecurity" -}}
allowPrivilegeEscalation: false
privileged: false
readOnlyRootFilesystem: true
runAsNonRoot: true
capabilities: {drop: [ALL]}
{{- end -}}

{{/* Annotations and labels of a component's pods: (list $ "serving"). New settings mean new pods. */}}
{{- define "perdure.podMeta" -}}
{{- $root := index . 0 -}}
{{- $component := index . 1 -}}
{{- $values := index $root.Values $component -}}
annotations:
  checksum/config: {{ include "perdure.settings" $root | sha256sum }}
  {{- with $values.podAnnotations }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
labels:
  {{- include "perdure.componentLabels" . | nindent 2 }}
  {{- if eq $root.Values.stream.kind "sqlite" }}
  perdure/stream: {{ $root.Release.Name }}
  {{- end }}
  {{- with $values.podLabels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end -}}

{{/* The head of a component's pod spec: (list $ "serving"). */}}
{{- define "perdure.podHead" -}}
{{- $root := index . 0 -}}
{{- $values := index $root.Values (index . 1) -}}
serviceAccountName: {{ include "perdure.serviceAccount" . }}
automountServiceAccountToken: false
enableServiceLinks: false
securityContext:
  {{- include "perdure.podSecurity" $root | nindent 2 }}
{{- with $root.Values.image.pullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with $values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- $affinity := $values.affinity }}
{{- if eq $root.Values.stream.kind "sqlite" }}
{{- /* The file is safe on one node only; the term matches the pod itself, so the first one may go anywhere. */}}
{{- $together := dict "topologyKey" "kubernetes.io/hostname" "labelSelector" (dict "matchLabels" (dict "perdure/stream" $root.Release.Name)) }}
{{- $affinity = mergeOverwrite (deepCopy $affinity) (dict "podAffinity" (dict "requiredDuringSchedulingIgnoredDuringExecution" (list $together))) }}
{{- end }}
{{- with $affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* Environment of every container: (list $ "serving"). Whatever a library writes goes below /tmp. */}}
{{- define "perdure.env" -}}
{{- $root := index . 0 -}}
- {name: HOME, value: /tmp}
- {name: TMPDIR, value: /tmp}
- {name: MPLCONFIGDIR, value: /tmp/matplotlib}
- {name: XDG_CACHE_HOME, value: /tmp/cache}
{{- if eq $root.Values.registry.kind "objectStore" }}
{{- with $root.Values.registry.env }}
{{ toYaml . }}
{{- end }}
{{- end }}
{{- with (index $root.Values (index . 1)).env }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "perdure.envFrom" -}}
{{- if and (eq .Values.registry.kind "objectStore") .Values.registry.credentials.existingSecret -}}
envFrom:
  - secretRef: {name: {{ .Values.registry.credentials.existingSecret }}}
{{- end -}}
{{- end -}}

{{/* Mounts of every container. The working folder is below /var/lib/perdure, where versions are cached. */}}
{{- define "perdure.mounts" -}}
- {name: config, mountPath: /etc/perdure, readOnly: true}
- {name: tmp, mountPath: /tmp}
- {name: work, mountPath: /var/lib/perdure/var}
{{- if eq .Values.registry.kind "volume" }}
- {name: registry, mountPath: /var/lib/perdure/registry}
{{- end }}
{{- if eq .Values.stream.kind "sqlite" }}
- {name: stream, mountPath: /var/lib/perdure/stream}
{{- end }}
{{- if include "perdure.kafkaSecrets" . }}
- {name: kafka, mountPath: /etc/perdure-kafka, readOnly: true}
{{- end }}
{{- end -}}

{{/* Volumes of every pod: (list $ WORK), where WORK is the most that the working folder takes, empty for no bound. */}}
{{- define "perdure.volumes" -}}
{{- $root := index . 0 -}}
- name: config
  configMap: {name: {{ include "perdure.fullname" $root }}-config}
- name: tmp
  emptyDir: {}
- name: work
  emptyDir: {{ with index . 1 }}{sizeLimit: {{ . }}}{{ else }}{}{{ end }}
{{- if eq $root.Values.registry.kind "volume" }}
- name: registry
  persistentVolumeClaim:
    claimName: {{ $root.Values.registry.volume.existingClaim | default (printf "%s-registry" (include "perdure.fullname" $root)) }}
{{- end }}
{{- if eq $root.Values.stream.kind "sqlite" }}
- name: stream
  persistentVolumeClaim:
    claimName: {{ $root.Values.stream.sqlite.existingClaim | default (printf "%s-stream" (include "perdure.fullname" $root)) }}
{{- end }}
{{- with include "perdure.kafkaSecrets" $root }}
- name: kafka
  projected:
    defaultMode: 0440
    sources:
      {{- trim . | nindent 6 }}
{{- end }}
{{- end -}}

{{/* The Secrets that a client of Kafka needs, as sources of a projected volume; empty where none is. */}}
{{- define "perdure.kafkaSecrets" -}}
{{- $security := include "perdure.security" . -}}
{{- $kafka := .Values.stream.kafka -}}
{{- if eq .Values.stream.kind "strimzi" -}}
- secret:
    name: {{ include "perdure.kafkaUser" . }}
    items: [{key: password, path: password}]
- secret:
    name: {{ include "perdure.kafkaCluster" . }}-cluster-ca-cert
    items: [{key: ca.crt, path: ca.crt}]
{{- else if eq .Values.stream.kind "kafka" }}
{{- if hasPrefix "SASL" $security -}}
- secret:
    name: {{ $kafka.sasl.existingSecret }}
    items: [{key: {{ $kafka.sasl.key }}, path: password}]
{{- end }}
{{- if and (hasSuffix "SSL" $security) $kafka.tls.caSecret }}
- secret:
    name: {{ $kafka.tls.caSecret }}
    items: [{key: {{ $kafka.tls.caKey }}, path: ca.crt}]
{{- end }}
{{- if and (hasSuffix "SSL" $security) $kafka.tls.clientSecret }}
- secret:
    name: {{ $kafka.tls.clientSecret }}
    items: [{key: tls.crt, path: tls.crt}, {key: tls.key, path: tls.key}]
{{- end }}
{{- end }}
{{- end -}}

{{/* A claim of the chart's own: (list $ NAME VALUES MODES). */}}
{{- define "perdure.claim" -}}
{{- $root := index . 0 -}}
{{- $volume := index . 2 -}}
apiVersion: v1
kind: PersistentVolumeClaim
metadata:
  name: {{ include "perdure.fullname" $root }}-{{ index . 1 }}
  labels:
    {{- include "perdure.labels" $root | nindent 4 }}
  {{- if $volume.keep }}
  annotations:
    helm.sh/resource-policy: keep
  {{- end }}
spec:
  accessModes: {{ toJson (index . 3) }}
  {{- with $volume.storageClass }}
  storageClassName: {{ . }}
  {{- end }}
  resources:
    requests: {storage: {{ $volume.size }}}
{{- end -}}
