{{/* The beginning of all names. Kubernetes allows 63 characters, and the longest suffix has 14. */}}
{{- define "orders.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 49 | trimSuffix "-" }}
{{- else }}
{{- $name := default .Chart.Name .Values.nameOverride }}
{{- if contains $name .Release.Name }}
{{- .Release.Name | trunc 49 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name $name | trunc 49 | trimSuffix "-" }}
{{- end }}
{{- end }}
{{- end }}

{{/* The labels by which the pods of a component are found. Takes a list: the root, the component. */}}
{{- define "orders.selectorLabels" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: {{ default $root.Chart.Name $root.Values.nameOverride }}
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{/* All labels of a component's objects. Takes a list: the root, the component. */}}
{{- define "orders.labels" -}}
{{- $root := index . 0 -}}
{{ include "orders.selectorLabels" . }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_" }}
{{- end }}

{{/* The reference of an image. Takes a list: the root, the image's values. */}}
{{- define "orders.image" -}}
{{- $root := index . 0 }}
{{- $image := index . 1 }}
{{- $name := $image.repository }}
{{- if $root.Values.image.registry }}
{{- $name = printf "%s/%s" (trimSuffix "/" $root.Values.image.registry) $name }}
{{- end }}
{{- if $image.digest }}
{{- printf "%s@%s" $name $image.digest }}
{{- else }}
{{- printf "%s:%s" $name (default $root.Chart.AppVersion $root.Values.image.tag) }}
{{- end }}
{{- end }}

{{/* The folder of everything that comes from Secrets. */}}
{{- define "orders.secretsFolder" -}}/run/secrets/order-service{{- end }}

{{/* The variables for the database, as YAML. Takes a list: the root, the component's values. */}}
{{- define "orders.databaseVariables" -}}
{{- $root := index . 0 }}
{{- $database := $root.Values.database -}}
DB_HOST: {{ $database.host | quote }}
DB_PORT: {{ $database.port }}
DB_NAME: {{ $database.name | quote }}
DB_SSLMODE: {{ $database.sslmode }}
DB_USER: {{ (index . 1).database.user | quote }}
DB_PASSWORD_FILE: {{ include "orders.secretsFolder" $root }}/database-password
{{- if or $database.ca.secretName $database.ca.configMapName }}
DB_SSLROOTCERT: {{ include "orders.secretsFolder" $root }}/database-ca.crt
{{- else if hasPrefix "verify-" $database.sslmode }}
DB_SSLROOTCERT: /etc/ssl/certs/ca-certificates.crt
{{- end }}
{{- end }}

{{/* A list of environment variables. Takes a dictionary. Whole numbers are written without an exponent. */}}
{{- define "orders.env" -}}
{{- range $name, $value := . }}
- name: {{ $name }}
  value: {{ if kindIs "string" $value }}{{ $value | quote }}{{ else if kindIs "bool" $value }}{{ $value | toString | quote }}{{ else }}{{ $value | int64 | toString | quote }}{{ end }}
{{- end }}
{{- end }}

{{/* Where a file of CAs comes from, as a list of sources of a volume. Takes a list: the ca of the values, the file's name. */}}
{{- define "orders.caSource" -}}
{{- $item := dict "key" (index . 0).key "path" (index . 1) }}
{{- with index . 0 }}
{{- if .secretName }}
{{- toYaml (list (dict "secret" (dict "name" .secretName "items" (list $item)))) }}
{{- else if .configMapName }}
{{- toYaml (list (dict "configMap" (dict "name" .configMapName "items" (list $item)))) }}
{{- end }}
{{- end }}
{{- end }}

{{/* The variables for traces that name files, as YAML. Takes the root. */}}
{{- define "orders.traceVariables" -}}
{{- $secrets := include "orders.secretsFolder" . }}
{{- with .Values.traces }}
{{- if .headersSecret.name }}
OTEL_EXPORTER_OTLP_HEADERS_FILE: {{ $secrets }}/trace-headers
{{- end }}
{{- if or .ca.secretName .ca.configMapName }}
OTEL_EXPORTER_OTLP_CERTIFICATE: {{ $secrets }}/trace-ca.crt
{{- end }}
{{- end }}
{{- end }}

{{/* Where these files come from, as a list of sources of a volume. Takes the root. */}}
{{- define "orders.traceSources" -}}
{{- with .Values.traces }}
{{- with .headersSecret }}
{{- if .name }}
{{- $item := dict "key" .key "path" "trace-headers" }}
{{- toYaml (list (dict "secret" (dict "name" .name "items" (list $item)))) }}
{{- end }}
{{- end }}
{{- include "orders.caSource" (list .ca "trace-ca.crt") | nindent 0 }}
{{- end }}
{{- end }}

{{/* The one volume with what Secrets hold. Takes a list: the root, the component's values, more sources as YAML. */}}
{{- define "orders.secretsVolume" -}}
{{- $root := index . 0 }}
{{- $database := (index . 1).database -}}
- name: secrets
  projected:
    # The processes read the files as members of fsGroup.
    defaultMode: 0440
    sources:
      - secret:
          name: {{ $database.secretName }}
          items:
            - {key: {{ $database.passwordKey | quote }}, path: database-password}
      {{- include "orders.caSource" (list $root.Values.database.ca "database-ca.crt") | nindent 6 }}
      {{- with index . 2 }}
      {{- . | nindent 6 }}
      {{- end }}
{{- end }}

{{/* What all pods have in common. Takes a list: the root, the component's values. */}}
{{- define "orders.podSpec" -}}
{{- $root := index . 0 }}
{{- $component := index . 1 -}}
automountServiceAccountToken: false
# Otherwise a Service named "ingestor" or "server" would set INGESTOR_PORT or SERVER_PORT to its address.
enableServiceLinks: false
{{- with $root.Values.image.pullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $component.serviceAccountName }}
serviceAccountName: {{ . }}
{{- end }}
{{- with $component.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with $component.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $component.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $component.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
securityContext:
  runAsNonRoot: true
  {{- if $root.Values.runAsUser }}
  runAsUser: {{ $root.Values.runAsUser }}
  runAsGroup: {{ $root.Values.runAsUser }}
  fsGroup: {{ $root.Values.runAsUser }}
  {{- end }}
  seccompProfile:
    type: RuntimeDefault
{{- end }}

{{/* What all containers may do: nothing. */}}
{{- define "orders.containerSecurity" -}}
securityContext:
  allowPrivilegeEscalation: false
  privileged: false
  readOnlyRootFilesystem: true
  capabilities:
    drop: [ALL]
{{- end }}

{{/* Spreads a component over zones and nodes. A new version is spread by itself. Takes a list: the root, the component. */}}
{{- define "orders.spread" -}}
topologySpreadConstraints:
  {{- range $key := list "topology.kubernetes.io/zone" "kubernetes.io/hostname" }}
  - maxSkew: 1
    topologyKey: {{ $key }}
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        {{- include "orders.selectorLabels" $ | nindent 8 }}
    matchLabelKeys: [pod-template-hash]
  {{- end }}
{{- end }}

{{/*
The probes, all of them on the operators' port, which clients cannot take away. /livez answers without a database, so an outage
of the database restarts nothing.
*/}}
{{- define "orders.probes" -}}
startupProbe:
  httpGet: {path: /livez, port: ops}
  periodSeconds: 2
  timeoutSeconds: 3
  failureThreshold: 30
livenessProbe:
  httpGet: {path: /livez, port: ops}
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 3
readinessProbe:
  httpGet: {path: /readyz, port: ops}
  periodSeconds: 5
  timeoutSeconds: 3
  failureThreshold: 2
{{- end }}

{{/*
The resources of a container: a limit of memory that fits the program's own setting, a request of the same size, so that the node
has this memory, and whatever the values add. Takes a list: MiB, the component's resources.
*/}}
{{- define "orders.resources" -}}
{{- $memory := printf "%dMi" (int64 (index . 0)) }}
{{- $given := deepCopy (index . 1) }}
{{- $limit := dig "limits" "memory" $memory $given }}
{{- $computed := dict "limits" (dict "memory" $limit) "requests" (dict "memory" $limit) }}
{{- toYaml (mergeOverwrite $computed $given) }}
{{- end }}

{{/* Seconds for a process to end by itself: ten more than its own deadlines. Takes milliseconds. */}}
{{- define "orders.gracePeriod" -}}
{{- add (div (add (int64 .) 999) 1000) 10 }}
{{- end }}

{{/* Refuses combinations that cannot work. All faults are reported together. */}}
{{- define "orders.check" -}}
{{- $faults := list }}
{{- $api := .Values.api }}
{{- $isOpen := or $api.allowUnauthenticatedReads $api.allowUnauthenticatedWrites }}
{{- if not (or $api.tokens.secretName $isOpen) }}
{{- $faults = append $faults "api.tokens.secretName is empty, so the api would refuse every request: name a Secret with tokens, or set api.allowUnauthenticatedReads" }}
{{- end }}
{{- if and $api.tokens.secretName $isOpen }}
{{- $faults = append $faults "api.tokens.secretName is set, so tokens are required: api.allowUnauthenticatedReads and api.allowUnauthenticatedWrites have no effect, remove them" }}
{{- end }}
{{- if and $api.ingress.enabled (not $api.tokens.secretName) }}
{{- $faults = append $faults "api.ingress.enabled needs api.tokens.secretName: a proxy requires tokens" }}
{{- end }}
{{- if and $api.ingress.enabled (not $api.ingress.hosts) }}
{{- $faults = append $faults "api.ingress.hosts is empty" }}
{{- end }}
{{- if and .Values.database.ca.secretName .Values.database.ca.configMapName }}
{{- $faults = append $faults "database.ca: set secretName or configMapName, not both" }}
{{- end }}
{{- if and .Values.traces.ca.secretName .Values.traces.ca.configMapName }}
{{- $faults = append $faults "traces.ca: set secretName or configMapName, not both" }}
{{- end }}
{{- if and (eq (int64 $api.settings.CACHE_CAPACITY_MB) 0) (not (dig "limits" "memory" "" $api.resources)) }}
{{- $faults = append $faults "api.settings.CACHE_CAPACITY_MB is 0, so the cache has no bound in bytes: set api.resources.limits.memory" }}
{{- end }}
{{- if and $api.autoscaling.enabled (gt (int64 $api.autoscaling.minReplicas) (int64 $api.autoscaling.maxReplicas)) }}
{{- $faults = append $faults "api.autoscaling.minReplicas is above maxReplicas" }}
{{- end }}
{{- if $faults }}
{{- fail (printf "\n- %s" (join "\n- " $faults)) }}
{{- end }}
{{- end }}
