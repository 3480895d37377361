{{/*
The names are the same in every release: there is one Pontoon in a cluster, and a second release is told so. One with a controllerName
of its own may be there, too: what of it is the cluster's has its namespace behind the name.
*/}}

{{/* What is wrong with the values taken together; the schema looks at each of them. */}}
{{- define "pontoon.check" -}}
{{- if and .Values.persistence.enabled (ne (int .Values.replicas) 1) -}}
{{- fail (printf "replicas is %d: with persistence.enabled it has to be 1, for a volume is one replica's own" (int .Values.replicas)) -}}
{{- end -}}
{{- end -}}

{{- define "pontoon.isUsual" -}}
{{- if eq .Values.gateways.controllerName "pontoon.dev/gateway-controller" }}true{{ end -}}
{{- end -}}

{{/* Of what is the cluster's, of {name, root}. */}}
{{- define "pontoon.clusterName" -}}
{{ .name }}{{ if not (include "pontoon.isUsual" .root) }}-{{ .root.Release.Namespace }}{{ end }}
{{- end -}}

{{/* As the program makes it of the controllerName (Controller::own). */}}
{{- define "pontoon.lease" -}}
{{- if include "pontoon.isUsual" . -}}
pontoon
{{- else -}}
pontoon-{{ regexReplaceAll "[^a-z0-9.-]+" (lower .Values.gateways.controllerName) "-" | trunc 100 | trimAll "-." }}
{{- end -}}
{{- end -}}

{{- define "pontoon.labels" -}}
app.kubernetes.io/name: {{ .name }}
app.kubernetes.io/part-of: pontoon
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
{{- end -}}

{{/* Of {image, root}. */}}
{{- define "pontoon.image" -}}
{{- if .image.digest -}}
{{ .image.repository }}@{{ .image.digest }}
{{- else -}}
{{ .image.repository }}:{{ .image.tag | default .root.Chart.AppVersion }}
{{- end -}}
{{- end -}}

{{- define "pontoon.xdsServer" -}}
{{ .Values.xdsServer | default (printf "http://pontoon.%s.svc:18000" .Release.Namespace) }}
{{- end -}}

{{/* Of both programs' pods, of {name, root}: where they run. */}}
{{- define "pontoon.placement" -}}
{{- with .root.Values.images.pullSecrets }}
imagePullSecrets:
{{- range . }}
- name: {{ . }}
{{- end }}
{{- end }}
{{- with .root.Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .root.Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .root.Values.tolerations }}
tolerations:
{{- toYaml . | nindent 0 }}
{{- end }}
{{- with .root.Values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- $name := .name }}
{{- with .root.Values.topologySpread }}
topologySpreadConstraints:
{{- range . }}
{{- $selector := dict "labelSelector" (dict "matchLabels" (dict "app.kubernetes.io/name" $name)) }}
- {{ merge $selector . | toYaml | indent 2 | trim }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "pontoon.podSecurity" -}}
runAsNonRoot: true
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "pontoon.containerSecurity" -}}
allowPrivilegeEscalation: false
capabilities:
  drop: [ALL]
readOnlyRootFilesystem: true
{{- end -}}

{{/* What both webhooks that inject say. */}}
{{- define "pontoon.webhook" -}}
admissionReviewVersions: [v1]
sideEffects: None
failurePolicy: {{ .Values.injector.failurePolicy }}
timeoutSeconds: {{ .Values.injector.timeoutSeconds }}
reinvocationPolicy: Never
clientConfig:
  service:
    name: pontoon-webhook
    namespace: {{ .Release.Namespace }}
    path: /inject
rules:
- apiGroups: [""]
  apiVersions: [v1]
  operations: [CREATE]
  resources: [pods]
{{- end -}}
