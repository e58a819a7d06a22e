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
{{- range $table := list "policy" "pool" "presets" -}}
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
{{- include "caisson.table" (list "policy" .Values.policy) -}}
{{- range $name, $_ := .Values.presets -}}
{{- $preset := include "caisson.preset" (list $ $name) | fromYaml -}}
{{- include "caisson.table" (list (printf "presets.%s" $name) $preset) -}}
{{- end -}}
{{- end -}}

{{/* A table of TOML with those below it: (list NAME TABLE). */}}
{{- define "caisson.table" }}
[{{ index . 0 }}]
{{- range $key, $value := index . 1 }}
{{- if not (kindIs "map" $value) }}
{{ toJson $key }} = {{ toJson $value }}
{{- end }}
{{- end }}
{{ range $key, $value := index . 1 -}}
{{- if kindIs "map" $value -}}
{{- include "caisson.table" (list (printf "%s.%s" (index $ 0) $key) $value) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* The settings of a preset, as YAML: those of its profiles, then its own: (list ROOT NAME). */}}
{{- define "caisson.preset" -}}
{{- $root := index . 0 -}}
{{- $preset := index $root.Values.presets (index . 1) -}}
{{- $all := dict -}}
{{- $isolation := $preset.isolation | default "standard" -}}
{{- $components := $preset.components | default "workspace" -}}
{{- range $profile := list (printf "isolation/%s" $isolation) (printf "components/%s" $components) -}}
{{- $text := $root.Files.Get (printf "profiles/%s.yaml" $profile) -}}
{{- include "caisson.merge" (list $all (fromYaml $text)) -}}
{{- end -}}
{{- include "caisson.merge" (list $all ($preset.settings | default dict)) -}}
{{- with $preset.namespaces -}}
{{- include "caisson.merge" (list $all (dict "policy" (dict "namespaces" .))) -}}
{{- end -}}
{{- toYaml $all -}}
{{- end -}}

{{/* Sets what the second dict has in the first one, empty values too: (list INTO FROM). */}}
{{- define "caisson.merge" -}}
{{- $into := index . 0 -}}
{{- range $key, $value := index . 1 -}}
{{- $old := get $into $key -}}
{{- if and (kindIs "map" $value) (kindIs "map" $old) -}}
{{- include "caisson.merge" (list $old $value) -}}
{{- else -}}
{{- $_ := set $into $key (kindIs "map" $value | ternary (deepCopy $value) $value) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* The names of our RuntimeClasses, as a list of CEL. */}}
{{- define "caisson.classes" -}}
{{- $names := list .Values.runtimeClass.name -}}
{{- range $name, $_ := .Values.presets -}}
{{- $names = append $names (printf "%s-%s" $.Values.runtimeClass.name $name) -}}
{{- end -}}
{{- toJson $names -}}
{{- end -}}

{{/* A regular expression for a list of namespaces with * and ?. */}}
{{- define "caisson.namespaces" -}}
{{- if . -}}
^({{ range $at, $pattern := . }}{{ if $at }}|{{ end }}{{ $pattern | replace "*" ".*" | replace "?" "." }}{{ end }})$
{{- else -}}
^$
{{- end -}}
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

{{/* What a hook needs is made before it: the hook's events. */}}
{{- define "caisson.hook" -}}
helm.sh/hook: {{ . }}
helm.sh/hook-weight: "-1"
helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded
{{- end -}}
