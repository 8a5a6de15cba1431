{{/*
The first line of each template: puts the default in place of what is missing. A null removes a value, and `--reuse-values`
brings the values of an older chart, which had fewer. files/values.json is made of values.yaml.
*/}}
{{- define "mnist-train.fillIn" -}}
{{- include "mnist-train.fill" (list .Values (.Files.Get "files/values.json" | fromJson)) -}}
{{- range $section, $_ := .Files.Get "files/defaults.json" | fromJson -}}
{{- range $field, $value := get $.Values $section -}}
{{- if kindIs "invalid" $value -}}
{{- $_ := unset (get $.Values $section) $field -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- /*
Takes (list VALUES DEFAULTS). Of the maps whose keys users choose, an entry that is gone was removed on purpose. A null has a meaning
of its own for runAsUser, and is refused for the places that a network policy opens.
*/ -}}
{{- define "mnist-train.fill" -}}
{{- $values := index . 0 -}}
{{- $free := list "podLabels" "podAnnotations" "requests" "limits" "nodeSelector" -}}
{{- $own := list "runAsUser" "egressCIDRs" "egressPorts" -}}
{{- range $name, $default := index . 1 -}}
{{- $value := get $values $name -}}
{{- if has $name $own -}}
{{- else if or (not (hasKey $values $name)) (kindIs "invalid" $value) -}}
{{- $_ := set $values $name $default -}}
{{- else if and (kindIs "map" $default) (not (has $name $free)) -}}
{{- include "mnist-train.fill" (list $value $default) -}}
{{- end -}}
{{- end -}}
{{- end -}}
