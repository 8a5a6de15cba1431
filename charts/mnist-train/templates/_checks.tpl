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

{{- /*
Values that nothing would read. Each row: whether that is so, the values, the rule, what to do; a value at its default passes.
Allowed on purpose: image.tag beside image.digest (release tools write both), history limits without a schedule (they count for
`kubectl create job --from`), ttlSecondsAfterFinished with a schedule, persistence.cache without store.uri.
*/ -}}
{{- define "mnist-train.checkIgnored" -}}
{{- $values := .Values -}}
{{- $hasSchedule := not (empty $values.schedule) -}}
{{- $hasVolume := not (empty (include "mnist-train.hasVolume" .)) -}}
{{- $usesStores := or (contains "://" ($values.store.uri | default "")) (contains "://" ($values.data.uri | default "")) -}}
{{- $usesAzure := or (hasPrefix "az://" ($values.store.uri | default "")) (hasPrefix "az://" ($values.data.uri | default "")) -}}
{{- $ofClaim := list "persistence.size" "persistence.storageClassName" "persistence.accessModes" "persistence.labels" "persistence.annotations" "persistence.bind" -}}
{{- $rows := list
  (list $hasSchedule (list "retry") "must not be set with a schedule, which has no Job of its own to start again" "set retry=0, and start a run with kubectl create job --from=cronjob/NAME or mnist-k8s submit")
  (list $hasSchedule (list "run.suffix") "must not be set with a schedule, whose runs are called after their Jobs" "leave it out")
  (list $hasSchedule (list "test.waitSeconds") "must not be set with a schedule, whose test waits for no run" "leave it out")
  (list (not (empty $values.run.id)) (list "run.suffix") "must not be set with run.id, which is the whole name" "leave one of them out")
  (list (not $hasSchedule) (list "timeZone" "concurrencyPolicy" "startingDeadlineSeconds") "needs a schedule" "set schedule, or leave it out")
  (list (not $values.serviceAccount.create) (list "serviceAccount.annotations") "needs serviceAccount.create=true" "annotate the ServiceAccount where you make it, or let the chart make one")
  (list (not (empty $values.persistence.existingClaim)) $ofClaim "must not be set with persistence.existingClaim, which is taken as it is" "leave one of them out")
  (list (not $hasVolume) $ofClaim "needs a PVC, and store.uri alone has none" "set persistence.cache=true to keep prepared data on one, or leave it out")
  (list (ne $values.monitoring.scrape "podMonitor") (list "monitoring.interval" "monitoring.labels" "monitoring.honorLabels" "monitoring.relabelings" "monitoring.metricRelabelings" "monitoring.podTargetLabels") "needs monitoring.scrape=podMonitor" "set that, or leave it out")
  (list (not $values.monitoring.rules.enabled) (list "monitoring.rules.labels" "monitoring.rules.alertLabels" "monitoring.rules.severities" "monitoring.rules.thresholds" "monitoring.rules.runbookUrl") "needs monitoring.rules.enabled=true" "set that, or leave it out")
  (list (not $values.networkPolicy.enabled) (list "networkPolicy.egressCIDRs" "networkPolicy.egressPorts" "networkPolicy.dnsPorts") "needs networkPolicy.enabled=true" "set that, or leave it out")
  (list (not $values.clientRole.create) (list "clientRole.subjects") "needs clientRole.create=true" "set that, or leave it out")
  (list (not $values.monitoring.dashboard.enabled) (list "monitoring.dashboard.labels" "monitoring.dashboard.annotations") "needs monitoring.dashboard.enabled=true" "set that, or leave it out")
  (list (not $usesAzure) (list "store.account_name") "needs store.uri or data.uri with az://" "leave it out")
  (list (not $usesStores) (list "store.endpoint" "store.region" "store.path_style") "needs an object store, and there is none" "set store.uri=s3://BUCKET/PREFIX, or leave it out to keep results on the PVC")
-}}
{{- $defaults := .Files.Get "files/values.json" | fromJson -}}
{{- range $rows -}}
{{- $isIgnored := index . 0 -}}
{{- $rule := index . 2 -}}
{{- $wayOut := index . 3 -}}
{{- range index . 1 -}}
{{- $value := $values -}}
{{- $default := $defaults -}}
{{- range splitList "." . -}}
{{- $value = index ($value | default dict) . -}}
{{- $default = index ($default | default dict) . -}}
{{- end -}}
{{- $isUnset := or (kindIs "invalid" $value) (eq (toJson $value) (toJson $default)) (eq (toJson $value) `""`) -}}
{{- if and $isIgnored (not $isUnset) -}}
{{- fail (printf "%s %s, received %s: %s" . $rule (toJson $value) $wayOut) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- /* A volume that one pod at a time can use, and runs that go on beside each other. NOTES.txt warns where it can still work. */ -}}
{{- define "mnist-train.checkVolume" -}}
{{- $isOnePod := has "ReadWriteOncePod" .Values.persistence.accessModes -}}
{{- if and .Values.schedule (eq .Values.concurrencyPolicy "Allow") $isOnePod -}}
{{- fail "concurrencyPolicy must not be Allow with persistence.accessModes=[\"ReadWriteOncePod\"], as the second run waits for the volume until the first has ended: set concurrencyPolicy=Forbid, persistence.accessModes={ReadWriteMany}, or store.uri without persistence.cache" -}}
{{- end -}}
{{- end -}}
