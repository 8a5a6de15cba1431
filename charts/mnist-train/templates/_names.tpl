{{/*
Names. The base is cut at 43 characters, so that base, "-" and 8 hex end at 52: the longest name of a CronJob, and
short enough for the pod names that a Job makes.
*/}}
{{- define "mnist-train.base" -}}
{{ include "mnist-train.cut" (default (include "mnist-train.wanted" .) .Values.fullnameOverride) }}
{{- end -}}

{{- /* The release, and nameOverride or the alias under which a parent chart has this one: docs/adr/0033-part-of-a-parent-chart.md. */ -}}
{{- define "mnist-train.wanted" -}}
{{- $alias := and (not .Chart.IsRoot) (ne .Chart.Name "mnist-train") | ternary .Chart.Name "" -}}
{{ compact (list .Release.Name (default $alias .Values.nameOverride)) | join "-" }}
{{- end -}}

{{- /* Takes a text; makes a name of at most 43 characters. */ -}}
{{- define "mnist-train.cut" -}}
{{- $plain := regexReplaceAll "[^a-z0-9-]" (lower .) "-" | trimAll "-" -}}
{{- if and (eq $plain .) (le (len $plain) 43) -}}
{{ $plain }}
{{- else -}}
{{- /* Cut or changed: a piece of the hash keeps two such names apart. */ -}}
{{ $plain | trunc 34 | trimSuffix "-" }}-{{ sha256sum . | trunc 8 }}
{{- end -}}
{{- end -}}

{{- /* What tells the objects of this chart from those of another one, also within one release. */ -}}
{{- define "mnist-train.instance" -}}
{{- $wanted := include "mnist-train.wanted" . -}}
{{ eq $wanted .Release.Name | ternary $wanted (include "mnist-train.cut" $wanted) }}
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
{{ include "mnist-train.repository" . }}@{{ .Values.image.digest }}
{{- else -}}
{{ include "mnist-train.repository" . }}:{{ default .Chart.AppVersion .Values.image.tag }}
{{- end -}}
{{- end -}}

{{- /* The registry that a parent chart names for all of its images stands in place of the one in image.repository. */ -}}
{{- define "mnist-train.repository" -}}
{{- $repository := .Values.image.repository -}}
{{- with (.Values.global | default dict).imageRegistry -}}
{{ . }}/{{ regexReplaceAll "^([^/]*[.:][^/]*|localhost)/" $repository "" }}
{{- else -}}
{{ $repository }}
{{- end -}}
{{- end -}}

{{- /* Those of the values and of a parent chart, as a JSON list. */ -}}
{{- define "mnist-train.imagePullSecrets" -}}
{{- $secrets := .Values.imagePullSecrets -}}
{{- range (.Values.global | default dict).imagePullSecrets -}}
{{- $secrets = append $secrets (kindIs "string" . | ternary (dict "name" .) .) -}}
{{- end -}}
{{ uniq $secrets | toJson }}
{{- end -}}

{{- /* mnist-k8s and dashboards look for this name, also when a parent chart calls the chart something else. */ -}}
{{- define "mnist-train.selectorLabels" -}}
app.kubernetes.io/name: mnist-train
app.kubernetes.io/instance: {{ include "mnist-train.instance" . | toJson }}
{{- end -}}

{{- define "mnist-train.ownLabels" -}}
{{ include "mnist-train.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | toJson }}
app.kubernetes.io/managed-by: {{ .Release.Service | toJson }}
helm.sh/chart: {{ printf "mnist-train-%s" .Chart.Version | replace "+" "_" | toJson }}
{{- end -}}

{{- define "mnist-train.labels" -}}
{{ include "mnist-train.withLabels" (list (include "mnist-train.ownLabels" .) .Values.commonLabels) }}
{{- end -}}
