{{/*
The first line of each template: puts the default in place of what is missing. A null removes a value, and `--reuse-values`
brings the values of an older chart, which had fewer. files/values.json is made of values.yaml.
*/}}
{{- define "mnist-train.fillIn" -}}
{{- include "mnist-train.fill" (list .Values (.Files.Get "files/values.json" | fromJson)) -}}
{{- end -}}

{{- /* Takes (list VALUES DEFAULTS). Of the maps whose keys users choose, an entry that is gone was removed on purpose. */ -}}
{{- define "mnist-train.fill" -}}
{{- $values := index . 0 -}}
{{- $free := list "podLabels" "podAnnotations" "requests" "limits" "nodeSelector" -}}
{{- range $name, $default := index . 1 -}}
{{- $value := get $values $name -}}
{{- if or (not (hasKey $values $name)) (kindIs "invalid" $value) -}}
{{- $_ := set $values $name $default -}}
{{- else if and (kindIs "map" $default) (not (has $name $free)) -}}
{{- include "mnist-train.fill" (list $value $default) -}}
{{- end -}}
{{- end -}}
{{- end -}}
