{{- define "sidewinder.labels" -}}
app.kubernetes.io/name: sidewinder
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "sidewinder.selector" -}}
app.kubernetes.io/name: sidewinder
app.kubernetes.io/component: operator
{{- end }}

{{- /* The user name of the operator's service account, as admission sees it. */ -}}
{{- define "sidewinder.username" -}}
system:serviceaccount:{{ .Release.Namespace }}:sidewinder-operator
{{- end }}

{{- define "sidewinder.image" -}}
{{ .image.repository }}{{ if .image.digest }}@{{ .image.digest }}{{ else }}:{{ .image.tag | default .version }}{{ end }}
{{- end }}

{{- define "sidewinder.operatorImage" -}}
{{ include "sidewinder.image" (dict "image" .Values.image "version" .Chart.AppVersion) }}
{{- end }}

{{- define "sidewinder.sidecarImage" -}}
{{ include "sidewinder.image" (dict "image" .Values.sidecar.image "version" .Chart.AppVersion) }}
{{- end }}

{{- /* Whether an object for Prometheus or Grafana is made: `create` is Auto, Always or Never. */ -}}
{{- define "sidewinder.monitored" -}}
{{- if or (eq .create "Always") (and (eq .create "Auto") (.root.Capabilities.APIVersions.Has "monitoring.coreos.com/v1")) }}yes{{ end }}
{{- end }}
