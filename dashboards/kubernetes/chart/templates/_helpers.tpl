{{- define "corevital.name" -}}
{{- default .Release.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end }}

{{- define "corevital.selector" -}}
app.kubernetes.io/name: corevital
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "corevital.labels" -}}
{{ include "corevital.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- define "corevital.image" -}}
{{- if not .image.repository }}
{{- fail (printf "%s.repository is empty: build dashboards/docker/%s, push it, and set %s.repository to its name in your registry" .name .file .name) }}
{{- end -}}
{{ .image.repository }}:{{ .image.tag | default .root.Chart.AppVersion }}
{{- end }}

{{- define "corevital.endpoint" -}}
{{- if .Values.otlp.endpoint -}}
{{ .Values.otlp.endpoint }}
{{- else if .Values.collector.enabled -}}
http://{{ include "corevital.name" . }}-otel-collector.{{ .Release.Namespace }}:4317
{{- end -}}
{{- end }}

{{- /* Port of otlp.endpoint, if a restricted egress does not leave it open in any case. */}}
{{- define "corevital.endpointPort" -}}
{{- $address := include "corevital.endpoint" . }}
{{- $port := regexFind ":[0-9]+(/|$)" (regexReplaceAll "^https?://" $address "") | trimAll ":/" }}
{{- if not $port }}{{ $port = ternary "443" "80" (hasPrefix "https:" $address) }}{{ end }}
{{- if and $address (not (has $port (list "443" "4317" "4318"))) }}{{ $port }}{{ end }}
{{- end }}

{{- define "corevital.serviceAccount" -}}
{{ .Values.vllm.serviceAccountName | default (include "corevital.name" .) }}
{{- end }}

{{- /* Address of the hub. Its text must be the same everywhere, and its host one of the hub's own addresses. */}}
{{- define "corevital.hub" -}}
{{- if eq .Values.hub.kind "sidecar" -}}
tcp://127.0.0.1:{{ .Values.hub.ports.hub }}
{{- else -}}
tcp://$(NODE_IP):{{ .Values.hub.ports.hub }}
{{- end -}}
{{- end }}

{{- /* Variables of vLLM and of the hub. Of vLLM's the OpenTelemetry Operator sets some, if it is to. */}}
{{- define "corevital.environment" -}}
{{- $injected := and .injected .root.Values.instrumentation.enabled }}
{{- with .root }}
- {name: POD, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
- {name: NAMESPACE, valueFrom: {fieldRef: {fieldPath: metadata.namespace}}}
- {name: NODE, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}
- {name: OTEL_RESOURCE_ATTRIBUTES, value: "k8s.namespace.name=$(NAMESPACE),k8s.pod.name=$(POD),k8s.node.name=$(NODE)"}
- {name: OTEL_METRICS_EXPORTER, value: none} # Prometheus reads /metrics; both would count everything twice
{{- if not $injected }}
- {name: OTEL_SERVICE_NAME, value: {{ include "corevital.name" . }}}
{{- with include "corevital.endpoint" . }}
- {name: OTEL_EXPORTER_OTLP_ENDPOINT, value: {{ . | quote }}}
{{- end }}
{{- end }}
{{- with .Values.otlp.headers }}
{{- if .secretName }}
- {name: OTEL_EXPORTER_OTLP_HEADERS, valueFrom: {secretKeyRef: {name: {{ .secretName }}, key: {{ .key }}}}}
{{- end }}
{{- end }}
{{- if ne .Values.hub.kind "none" }}
{{- if eq .Values.hub.kind "daemonSet" }}
- {name: NODE_IP, valueFrom: {fieldRef: {fieldPath: status.hostIP}}}
{{- end }}
- {name: COREVITAL_HUB, value: {{ include "corevital.hub" . | quote }}}
- {name: COREVITAL_HUB_KEY, valueFrom: {secretKeyRef: {name: {{ .Values.hub.secretName }}, key: key}}}
{{- end }}
- {name: COREVITAL_LOG_FORMAT, value: json}
{{- range $name, $value := .Values.settings }}
- {name: {{ $name }}, value: {{ $value | toString | quote }}}
{{- end }}
{{- end }}
{{- end }}

{{- define "corevital.storeEnvironment" -}}
{{- if eq .Values.store.kind "none" }}
- {name: COREVITAL_DB, value: ""}
{{- else }}
- {name: COREVITAL_DB, value: /var/lib/corevital/corevital.db}
- {name: COREVITAL_DB_MAX_MB, value: {{ .Values.store.maxMb | toString | quote }}}
- {name: COREVITAL_DB_RETENTION_DAYS, value: {{ .Values.store.retentionDays | toString | quote }}}
{{- end }}
{{- end }}

{{- /* The hub's container: a sidecar, or the one of the DaemonSet. */}}
{{- define "corevital.hubContainer" -}}
name: hub
image: {{ include "corevital.image" (dict "root" . "image" .Values.hub.image "name" "hub.image" "file" "Dockerfile.hub") }}
imagePullPolicy: {{ .Values.hub.image.pullPolicy }}
args: [hub]
env:
  {{- include "corevital.environment" (dict "root" . "injected" false) | nindent 2 }}
  {{- include "corevital.storeEnvironment" . | trim | nindent 2 }}
  - {name: COREVITAL_HTTP, value: "0.0.0.0:{{ .Values.hub.ports.metrics }}"}
  - {name: COREVITAL_HTTP_TOKEN, valueFrom: {secretKeyRef: {name: {{ .Values.hub.secretName }}, key: token}}}
ports:
  - {name: hub, containerPort: {{ .Values.hub.ports.hub }}}
  - {name: hub-metrics, containerPort: {{ .Values.hub.ports.metrics }}}
startupProbe: {httpGet: {path: /health, port: hub-metrics}, periodSeconds: 2, failureThreshold: 30}
livenessProbe: {httpGet: {path: /health, port: hub-metrics}, periodSeconds: 10, timeoutSeconds: 5, failureThreshold: 6}
readinessProbe: {httpGet: {path: /health, port: hub-metrics}, periodSeconds: 5, timeoutSeconds: 5}
resources:
  {{- toYaml .Values.hub.resources | nindent 2 }}
securityContext:
  allowPrivilegeEscalation: false
  capabilities: {drop: [ALL]}
  readOnlyRootFilesystem: true
volumeMounts:
  - {name: tmp, mountPath: /tmp}
  {{- if ne .Values.store.kind "none" }}
  - {name: store, mountPath: /var/lib/corevital}
  {{- end }}
{{- end }}

{{- /* Values that are each valid and do not go together. */}}
{{- define "corevital.check" -}}
{{- $store := .Values.store }}
{{- if .Values.vllm.enabled }}
{{- if and (eq $store.kind "persistentVolumeClaim") (gt (int .Values.vllm.replicas) 1) }}
{{- fail "store.kind=persistentVolumeClaim needs vllm.replicas=1, for a store has one pod: use emptyDir or none, or install the chart once for each server" }}
{{- end }}
{{- if and (eq .Values.vllm.frontend "rust") (eq .Values.hub.kind "none") }}
{{- fail "vllm.frontend=rust needs a hub, for that frontend's page has no metrics of corevital: set hub.kind=sidecar" }}
{{- end }}
{{- range .Values.vllm.args }}
{{- if regexMatch "^--(port|host|api-key|uds|ssl-)" . }}
{{- fail (printf "vllm.args has %s, which the chart's probes and Service do not know: leave it out; for a key set vllm.apiKey.secretName" .) }}
{{- end }}
{{- end }}
{{- end }}
{{- if and (eq .Values.hub.kind "sidecar") (not .Values.vllm.enabled) }}
{{- fail "hub.kind=sidecar needs vllm.enabled=true, for the hub runs in vLLM's pods: set hub.kind=daemonSet" }}
{{- end }}
{{- if and .Values.instrumentation.enabled (not (include "corevital.endpoint" .)) }}
{{- fail "instrumentation.enabled=true needs an address: set otlp.endpoint, or collector.enabled=true" }}
{{- end }}
{{- if and .Values.instrumentation.sampler (ne .Values.hub.kind "none") }}
{{- fail "instrumentation.sampler has no effect with a hub, which sends the spans: leave it out and set settings.COREVITAL_SAMPLE_RATE" }}
{{- end }}
{{- if and .Values.monitoring.alertmanager.deadMan.enabled (not .Values.monitoring.rules.stack) }}
{{- fail "monitoring.alertmanager.deadMan.enabled=true needs CorevitalWatchdog, which monitoring.rules.stack=false leaves out: turn one of them off" }}
{{- end }}
{{- with .Values.monitoring.alertmanager }}
{{- if and .enabled (not (or .slack.channel .pagerDuty.enabled .email.to)) }}
{{- fail "monitoring.alertmanager.enabled=true needs a receiver: set slack.channel, pagerDuty.enabled or email.to" }}
{{- end }}
{{- if and .enabled .email.to (not (and .email.from .email.smarthost)) }}
{{- fail "monitoring.alertmanager.email.to needs email.from and email.smarthost: set both" }}
{{- end }}
{{- end }}
{{- end }}
