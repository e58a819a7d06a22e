{{- define "caisson.name" -}}
{{- ternary .Release.Name (printf "%s-%s" .Release.Name .Chart.Name) (contains .Chart.Name .Release.Name) | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- define "caisson.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "caisson.labels" -}}
{{ include "caisson.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end -}}

{{- define "caisson.image" -}}
{{ .Values.image.repository }}{{ if .Values.image.digest }}@{{ .Values.image.digest }}{{ else }}:{{ .Values.image.tag | default .Chart.AppVersion }}{{ end }}
{{- end -}}

{{/* The drop-in of each node, as TOML; strings of JSON are strings of TOML. */}}
{{- define "caisson.settings" -}}
{{- if regexMatch "(?m)^\\s*\\[?\\s*policy\\b" .Values.config -}}
{{- fail "config: [policy] goes into the value `policy`" -}}
{{- end -}}
{{- with .Values.config | trimSuffix "\n" }}{{ . }}
{{ end -}}
{{- range $table, $names := .Values.policy }}
[policy.{{ $table }}]
{{- range $name, $namespaces := $names }}
{{ toJson $name }} = {{ toJson $namespaces }}
{{- end }}
{{ end -}}
{{- end -}}

{{/* What the drain Job needs is made before it. */}}
{{- define "caisson.drainHook" -}}
helm.sh/hook: pre-delete
helm.sh/hook-weight: "-1"
helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded
{{- end -}}

{{- define "caisson.testHook" -}}
helm.sh/hook: test
helm.sh/hook-weight: "-1"
helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded
{{- end -}}
