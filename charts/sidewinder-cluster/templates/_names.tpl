{{- define "sidewinder.labels" -}}
app.kubernetes.io/name: sidewinder
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{- /* What follows says to policies.yaml and roles.yaml, which the chart sidewinder has too, what is this chart's own. */ -}}

{{- define "sidewinder.policies" -}}
yes
{{- end }}

{{- define "sidewinder.roles" -}}
{{- if .Values.roles.create }}yes{{ end -}}
{{- end }}

{{- /* The user names that the policies know as operators, as a list in CEL. */ -}}
{{- define "sidewinder.operators" -}}
{{- $names := list -}}
{{- range .Values.operators -}}
{{- $names = append $names (printf "'system:serviceaccount:%s:%s'" .namespace .serviceAccount) -}}
{{- end -}}
[{{ join ", " $names }}]
{{- end }}

{{- /* The images that an operator may put into pods, as a list in CEL. */ -}}
{{- define "sidewinder.sidecarImages" -}}
{{- $images := list -}}
{{- range .Values.sidecar.images | default (list (printf "localhost/sidewinder-sidecar:%s" .Chart.AppVersion)) -}}
{{- $images = append $images (printf "'%s'" .) -}}
{{- end -}}
[{{ join ", " $images }}]
{{- end }}

{{- define "sidewinder.optIn" -}}
{{ .Values.fences.optIn }}
{{- end }}

{{- /* Whether the cluster writes down who asks: MutatingAdmissionPolicy is v1 since Kubernetes 1.36. */ -}}
{{- define "sidewinder.stamp" -}}
{{- $there := .Capabilities.APIVersions.Has "admissionregistration.k8s.io/v1/MutatingAdmissionPolicy" -}}
{{- if or (eq .Values.admissionPolicies.stampRequester "Always") (and (eq .Values.admissionPolicies.stampRequester "Auto") $there) }}yes{{ end -}}
{{- end }}
