{{/* Texts of the nodes, which tests/api/chart/admission.rs compares with those of oci/. */}}
{{- define "caisson.advice.network" -}}
the host's network is not reachable from the guest; ask for no hostNetwork or --net-host
{{- end -}}
{{- define "caisson.advice.pid" -}}
the host's pid namespace is not reachable from the guest; ask for no hostPID, --pid=host or path
{{- end -}}
{{- define "caisson.advice.ipc" -}}
the host's IPC namespace is not reachable from the guest; ask for no hostIPC, --ipc=host or path
{{- end -}}
{{- define "caisson.advice.madeUp" -}}
which a VM can't show; the guest has its own, so leave the mount out, or run the pod without runtimeClassName
{{- end -}}
{{- define "caisson.advice.devices" -}}
the host's devices are not reachable from the guest; possible are block devices (volumeDevices), /dev/fuse, /dev/net/tun, /dev/kmsg and /dev/ppp, and all of the guest's for a privileged container
{{- end -}}

{{/* The capabilities that containerd gives to every container, as a list of CEL. */}}
{{- define "caisson.defaultCapabilities" -}}
["AUDIT_WRITE", "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "MKNOD", "NET_BIND_SERVICE", "NET_RAW", "SETFCAP", "SETGID", "SETPCAP", "SETUID", "SYS_CHROOT"]
{{- end -}}

{{/* The policy of each of our classes, as a map of CEL: by entry, an expression for namespaces. */}}
{{- define "caisson.policies" -}}
{{- $policies := dict .Values.runtimeClass.name .Values.policy -}}
{{- range $name, $_ := .Values.presets -}}
{{- $preset := include "caisson.preset" (list $ $name) | fromYaml -}}
{{- $said := dig "policy" dict $preset -}}
{{- $policy := deepCopy $.Values.policy -}}
{{- /* An entry for all devices replaces those for single ones, as on the node. */ -}}
{{- if hasKey ($said.annotations | default dict) "caisson.dev/devices" -}}
{{- range $key, $_ := $policy.annotations -}}
{{- if contains "=" $key -}}
{{- $_ := unset $policy.annotations $key -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- include "caisson.merge" (list $policy $said) -}}
{{- $_ := set $policies (printf "%s-%s" $.Values.runtimeClass.name $name) $policy -}}
{{- end -}}
{{- $all := dict -}}
{{- range $class, $policy := $policies -}}
{{- $entries := dict -}}
{{- range $list := list "namespaces" "privileges" -}}
{{- $_ := set $entries $list (include "caisson.namespaces" (get $policy $list)) -}}
{{- end -}}
{{- range $key, $namespaces := $policy.annotations -}}
{{- $_ := set $entries $key (include "caisson.namespaces" $namespaces) -}}
{{- end -}}
{{- $_ := set $all $class $entries -}}
{{- end -}}
{{- toJson $all -}}
{{- end -}}
