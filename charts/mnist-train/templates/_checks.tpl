{{/*
Values that the schema cannot judge. Each refusal says what is wrong, the rule, what was received and what to do.
*/}}

{{- /* The bounds of numbers that are given as text, as `helm --set` does: a schema compares numbers only. */ -}}
{{- define "mnist-train.checkNumbers" -}}
{{- range $name, $bounds := .Files.Get "files/bounds.json" | fromJson -}}
{{- $path := splitList "." $name -}}
{{- $value := index (get $.Values (first $path) | default dict) (last $path) -}}
{{- if kindIs "string" $value -}}
{{- $number := float64 $value -}}
{{- range $kind, $bound := $bounds -}}
{{- $isWithin := dict "minimum" (ge $number $bound) "exclusiveMinimum" (gt $number $bound) "maximum" (le $number $bound) "exclusiveMaximum" (lt $number $bound) -}}
{{- if not (get $isWithin $kind) -}}
{{- $rule := get (dict "minimum" "at least" "exclusiveMinimum" "more than" "maximum" "at most" "exclusiveMaximum" "less than") $kind -}}
{{- fail (printf "%s must be %s %v, received %s; set another number" $name $rule $bound $value) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- /* A folder that only this machine's working folder has. In the pod that one is /work, which is empty at the start. */ -}}
{{- define "mnist-train.checkData" -}}
{{- with .Values.data.uri -}}
{{- if not (regexMatch "^((file:)?/|[a-z0-9]+://)" .) -}}
{{- fail (printf "data.uri must be an absolute folder of the pod or the URI of a store, received %q; mount the data (extraVolumes, extraVolumeMounts) and write /FOLDER, or name s3://BUCKET/PREFIX" .) -}}
{{- end -}}
{{- end -}}
{{- end -}}
