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
{{- range $table := list "policy" "pool" -}}
{{- if regexMatch (printf "(?m)^\\s*\\[?\\s*%s\\b" $table) $.Values.config -}}
{{- fail (printf "config: [%s] goes into the value `%s`" $table $table) -}}
{{- end -}}
{{- end -}}
{{- with .Values.config | trimSuffix "\n" }}{{ . }}
{{ end -}}
{{- with .Values.pool.size }}
[pool]
size = {{ int . }}
{{ end -}}
{{- range $table, $names := .Values.policy }}
[policy.{{ $table }}]
{{- range $name, $namespaces := $names }}
{{ toJson $name }} = {{ toJson $namespaces }}
{{- end }}
{{ end -}}
{{- end -}}

{{/* The DaemonSet's resources, with the memory of the VMs that the node keeps ready. */}}
{{- define "caisson.nodeResources" -}}
{{- $resources := deepCopy .Values.node.resources -}}
{{- if .Values.pool.size -}}
{{- $more := mul .Values.pool.size .Values.pool.memoryMiB -}}
{{- range $kind := list "requests" "limits" -}}
{{- with dig $kind "memory" "" $resources -}}
{{- $mib := include "caisson.mib" (toString .) | int64 -}}
{{- $memory := printf "%dMi" (add $mib $more) -}}
{{- $resources = mergeOverwrite $resources (dict $kind (dict "memory" $memory)) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- toYaml $resources -}}
{{- end -}}

{{/* A quantity of memory in MiB. */}}
{{- define "caisson.mib" -}}
{{- if hasSuffix "Gi" . -}}{{ mul 1024 (trimSuffix "Gi" . | int64) }}
{{- else if hasSuffix "Mi" . -}}{{ trimSuffix "Mi" . }}
{{- else -}}{{ fail (printf "node.resources: memory %s: with pool.size, say it in Mi or Gi" .) }}
{{- end -}}
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
