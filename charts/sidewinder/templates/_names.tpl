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

{{- /* What follows says to policies.yaml and roles.yaml, which the chart sidewinder-cluster has too, what is this chart's own. */ -}}

{{- /* Policies concern the whole cluster: an install for one namespace leaves them to its administrator. */ -}}
{{- define "sidewinder.policies" -}}
{{- if and .Values.admissionPolicies.enabled (not .Values.watchNamespace) }}yes{{ end -}}
{{- end }}

{{- define "sidewinder.roles" -}}
{{- if and .Values.roles.create (not .Values.watchNamespace) }}yes{{ end -}}
{{- end }}

{{- /* The user names that the policies know as operators, as a list in CEL. */ -}}
{{- define "sidewinder.operators" -}}
['{{ include "sidewinder.username" . }}']
{{- end }}

{{- /* The images that an operator may put into pods, as a list in CEL. */ -}}
{{- define "sidewinder.sidecarImages" -}}
['{{ include "sidewinder.sidecarImage" . }}']
{{- end }}

{{- define "sidewinder.optIn" -}}
{{ .Values.fences.optIn }}
{{- end }}

{{- /* Whether the cluster writes down who asks: MutatingAdmissionPolicy is v1 since Kubernetes 1.36. */ -}}
{{- define "sidewinder.stamp" -}}
{{- $there := .Capabilities.APIVersions.Has "admissionregistration.k8s.io/v1/MutatingAdmissionPolicy" -}}
{{- if or (eq .Values.admissionPolicies.stampRequester "Always") (and (eq .Values.admissionPolicies.stampRequester "Auto") $there) }}yes{{ end -}}
{{- end }}

{{- /* Where the cluster can stamp the requester, a session without one is older than the policy or went around it. */ -}}
{{- define "sidewinder.requireRequester" -}}
{{- if or (eq .Values.fences.requireRequester "Always") (and (eq .Values.fences.requireRequester "Auto") (include "sidewinder.stamp" .)) }}true{{ else }}false{{ end -}}
{{- end }}
