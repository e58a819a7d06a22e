{{/*
A Job that helm waits for, with what it needs: (list ROOT JOB). JOB has the hook's events, the
command of `caisson node`, the verb for the DaemonSet, and the command's limit.
*/}}
{{- define "caisson.job" -}}
{{- $job := index . 1 -}}
{{- $hook := $job.hook -}}
{{- with index . 0 -}}
{{- $name := printf "%s-%s" (include "caisson.name" .) $job.command -}}
apiVersion: v1
kind: ServiceAccount
metadata:
  name: {{ $name }}
  namespace: {{ .Release.Namespace }}
  labels: {{- include "caisson.labels" . | nindent 4 }}
  annotations: {{- include "caisson.hook" $hook | nindent 4 }}
automountServiceAccountToken: false
{{- with .Values.image.pullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata:
  name: {{ $name }}
  namespace: {{ .Release.Namespace }}
  labels: {{- include "caisson.labels" . | nindent 4 }}
  annotations: {{- include "caisson.hook" $hook | nindent 4 }}
rules:
  - apiGroups: [apps]
    resources: [daemonsets]
    resourceNames: [{{ include "caisson.name" . }}]
    verbs: [{{ $job.daemonset }}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata:
  name: {{ $name }}
  namespace: {{ .Release.Namespace }}
  labels: {{- include "caisson.labels" . | nindent 4 }}
  annotations: {{- include "caisson.hook" $hook | nindent 4 }}
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: Role
  name: {{ $name }}
subjects:
  - kind: ServiceAccount
    name: {{ $name }}
    namespace: {{ .Release.Namespace }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata:
  name: {{ $name }}
  labels: {{- include "caisson.labels" . | nindent 4 }}
  annotations: {{- include "caisson.hook" $hook | nindent 4 }}
rules:
  - apiGroups: [""]
    resources: [nodes]
    # list: their condition.
    verbs: [list]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata:
  name: {{ $name }}
  labels: {{- include "caisson.labels" . | nindent 4 }}
  annotations: {{- include "caisson.hook" $hook | nindent 4 }}
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: ClusterRole
  name: {{ $name }}
subjects:
  - kind: ServiceAccount
    name: {{ $name }}
    namespace: {{ .Release.Namespace }}
---
apiVersion: batch/v1
kind: Job
metadata:
  name: {{ $name }}
  namespace: {{ .Release.Namespace }}
  labels: {{- include "caisson.labels" . | nindent 4 }}
  annotations:
    helm.sh/hook: {{ $hook }}
    helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded
spec:
  backoffLimit: 2
  # The command's own limit comes first, since it says which nodes are left.
  activeDeadlineSeconds: {{ add $job.timeoutSeconds 60 }}
  template:
    metadata:
      labels:
        {{- include "caisson.selector" . | nindent 8 }}
        app.kubernetes.io/component: {{ $job.command }}
    spec:
      serviceAccountName: {{ $name }}
      automountServiceAccountToken: true
      restartPolicy: Never
      {{- with .Values.node.tolerations }}
      tolerations: {{- toYaml . | nindent 8 }}
      {{- end }}
      nodeSelector:
        kubernetes.io/os: linux
        kubernetes.io/arch: amd64
      securityContext:
        runAsNonRoot: true
        runAsUser: 65534
        seccompProfile:
          type: RuntimeDefault
      containers:
        - name: {{ $job.command }}
          image: {{ include "caisson.image" . }}
          imagePullPolicy: {{ .Values.image.pullPolicy }}
          args:
            - node
            - {{ $job.command }}
            - --daemonset={{ .Release.Namespace }}/{{ include "caisson.name" . }}
            - --timeout={{ $job.timeoutSeconds }}
          securityContext:
            allowPrivilegeEscalation: false
            readOnlyRootFilesystem: true
            capabilities:
              drop: [ALL]
          resources:
            requests:
              cpu: 10m
              memory: 32Mi
            limits:
              memory: 64Mi
{{- end -}}
{{- end -}}
