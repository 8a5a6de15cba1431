{{/*
Labels and annotations that users add: commonLabels and commonAnnotations to every object and pod, others to some. What is said of fewer
objects wins over what is said of more; what the chart sets itself wins over all.
*/}}

{{- /* Several maps as one, as JSON: a later one wins. Takes a list of them. */ -}}
{{- define "mnist-train.merged" -}}
{{- $merged := dict -}}
{{- range . -}}
{{- range $key, $value := . -}}
{{- $_ := set $merged $key $value -}}
{{- end -}}
{{- end -}}
{{ toJson $merged }}
{{- end -}}

{{- /* Lines of labels, and those of further maps that they do not have. Takes (list LINES MAP...). */ -}}
{{- define "mnist-train.withLabels" -}}
{{- $lines := first . -}}
{{- $lines -}}
{{- $taken := fromYaml $lines -}}
{{- range $key, $value := include "mnist-train.merged" (rest .) | fromJson -}}
{{- if not (hasKey $taken $key) }}
{{ toJson $key }}: {{ toJson $value }}
{{- end -}}
{{- end -}}
{{- end -}}

{{- /* Annotations of an object, as JSON, or nothing. Takes (list $ MAP...). */ -}}
{{- define "mnist-train.annotations" -}}
{{- with include "mnist-train.merged" (prepend (rest .) (first .).Values.commonAnnotations) | fromJson -}}
{{ toJson . }}
{{- end -}}
{{- end -}}

{{- /* Keys that are not the user's, with the value to set in their place. */ -}}
{{- define "mnist-train.checkMetadata" -}}
{{- $labels := dict "commonLabels" .Values.commonLabels "jobLabels" .Values.jobLabels "podLabels" .Values.podLabels -}}
{{- range $name, $map := $labels -}}
{{- range $key, $_ := $map -}}
{{- if eq $key "kueue.x-k8s.io/queue-name" -}}
{{- fail (printf "%s must not hold %s, which would pass by the rules of a queue: set queueName" $name $key) -}}
{{- end -}}
{{- if regexMatch "^(batch[.]kubernetes[.]io/.*|controller-uid|job-name)$" $key -}}
{{- fail (printf "%s must not hold %s, which Kubernetes sets on each pod of a Job: leave it out" $name $key) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- range $name, $map := dict "commonAnnotations" .Values.commonAnnotations "jobAnnotations" .Values.jobAnnotations "persistence.annotations" .Values.persistence.annotations "monitoring.dashboard.annotations" .Values.monitoring.dashboard.annotations -}}
{{- range $key, $_ := $map -}}
{{- if hasPrefix "helm.sh/hook" $key -}}
{{- fail (printf "%s must not hold %s: Helm runs a hook once, and neither upgrades nor removes it; leave it out" $name $key) -}}
{{- end -}}
{{- if hasPrefix "mnist-train/" $key -}}
{{- fail (printf "%s must not hold %s, by which mnist-k8s finds the run of a Job: leave it out" $name $key) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
