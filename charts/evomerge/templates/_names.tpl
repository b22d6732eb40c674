{{/* The name of everything in the release's namespace; at most 52 characters, so that suffixes fit. */}}
{{- define "evomerge.name" -}}
{{- if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 52 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* The name of everything that has no namespace: another release elsewhere may bear the same name. */}}
{{- define "evomerge.clusterName" -}}
{{- printf "%s-%s" .Release.Namespace (include "evomerge.name" .) -}}
{{- end -}}

{{/* What selects the operator's pods. Never changes: a Deployment's selector cannot. */}}
{{- define "evomerge.selector" -}}
app.kubernetes.io/name: evomerge
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: operator
{{- end -}}

{{- define "evomerge.labels" -}}
{{ include "evomerge.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{/* repository:tag, from (list $ .Values.image.worker) */}}
{{- define "evomerge.image" -}}
{{- $root := index . 0 -}}{{- $image := index . 1 -}}
{{- printf "%s:%s" $image.repository ($image.tag | default $root.Chart.AppVersion) -}}
{{- end -}}

{{/* What the operator's labels of workers' pods are. */}}
{{- define "evomerge.workerLabels" -}}
app.kubernetes.io/managed-by: evomerge
app.kubernetes.io/name: evomerge-worker
{{- end -}}

{{/* A container that a namespace under Pod Security "restricted" accepts. */}}
{{- define "evomerge.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}

{{- define "evomerge.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile: {type: RuntimeDefault}
{{- end -}}
