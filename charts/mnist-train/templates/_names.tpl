{{/*
Names. The base is cut at 43 characters, so that base, "-" and 8 hex end at 52: the longest name of a CronJob, and
short enough for the pod names that a Job makes.
*/}}
{{- define "mnist-train.base" -}}
{{- $wanted := default .Release.Name .Values.fullnameOverride -}}
{{- $plain := $wanted | replace "." "-" -}}
{{- if and (eq $plain $wanted) (le (len $plain) 43) -}}
{{ $plain }}
{{- else -}}
{{- /* Cut or changed: a piece of the hash keeps two such names apart. */ -}}
{{ $plain | trunc 34 | trimSuffix "-" }}-{{ sha256sum $wanted | trunc 8 }}
{{- end -}}
{{- end -}}

{{- define "mnist-train.claimName" -}}
{{ default (printf "%s-store" (include "mnist-train.base" .)) .Values.persistence.existingClaim }}
{{- end -}}

{{- define "mnist-train.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{ default (printf "%s-train" (include "mnist-train.base" .)) .Values.serviceAccount.name }}
{{- else -}}
{{ default "default" .Values.serviceAccount.name }}
{{- end -}}
{{- end -}}

{{- define "mnist-train.image" -}}
{{- if not .Values.image.repository -}}
{{- fail "image.repository must name your image: build and push one with `scripts/image --push REGISTRY/mnist-train`, then give --set image.repository=REGISTRY/mnist-train (with kind: scripts/kind up)" -}}
{{- end -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ default .Chart.AppVersion .Values.image.tag }}
{{- end -}}
{{- end -}}

{{- define "mnist-train.selectorLabels" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name | trunc 63 | trimSuffix "-" | toJson }}
{{- end -}}

{{- define "mnist-train.ownLabels" -}}
{{ include "mnist-train.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | toJson }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "mnist-train.labels" -}}
{{ include "mnist-train.withLabels" (list (include "mnist-train.ownLabels" .) .Values.commonLabels) }}
{{- end -}}
