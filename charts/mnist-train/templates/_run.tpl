{{/*
Which run it is, and with which settings. files/defaults.json and files/decides.json are made of the job's own code, so that a
value that equals its default neither becomes an argument nor another run. `helm --set` makes a string of 0.5: where a number is meant it is one again.
*/}}

{{- /* [clusterName.]namespace, in front of each run id. */ -}}
{{- define "mnist-train.runPrefix" -}}
{{ with .Values.clusterName }}{{ . }}.{{ end }}{{ .Release.Namespace }}
{{- end -}}

{{- /* The id of the one run of a release without a schedule: what decides the result, and run.suffix. */ -}}
{{- define "mnist-train.runId" -}}
{{- if .Values.run.id -}}
{{ .Values.run.id }}
{{- else -}}
{{- $defaults := .Files.Get "files/defaults.json" | fromJson -}}
{{- $decides := dict -}}
{{- $lists := .Files.Get "files/decides.json" | fromJson -}}
{{- range $name := concat $lists.always $lists.whenChanged -}}
{{- $section := splitList "." $name | first -}}
{{- $field := splitList "." $name | last -}}
{{- $default := get (get $defaults $section) $field -}}
{{- $fields := get $.Values $section -}}
{{- $value := get $fields $field -}}
{{- if or (not (hasKey $fields $field)) (kindIs "invalid" $value) (eq $name "cluster.workers") -}}
{{- $value = $default -}}
{{- end -}}
{{- if and (kindIs "string" $value) (kindIs "float64" $default) (regexMatch "^[-+.0-9eE]+$" (toString $value)) -}}
{{- $value = float64 $value -}}
{{- end -}}
{{- if or (has $name $lists.always) (ne (toJson $value) (toJson $default)) -}}
{{- $_ := set $decides $name (toJson $value) -}}
{{- end -}}
{{- end -}}
{{- /* Replicas decide, workers are placement (docs/adr/0011): as in job/runs/identity.py, one replica is not said. */ -}}
{{- $replicas := include "mnist-train.replicas" . -}}
{{- if ne $replicas "1" -}}
{{- $_ := set $decides "replicas" $replicas -}}
{{- end -}}
{{ include "mnist-train.runPrefix" . }}.{{ include "mnist-train.base" . }}-{{ toJson $decides | sha256sum | trunc 8 }}
{{- end -}}
{{- end -}}

{{- /* Settings that differ from their defaults, as a JSON list of arguments. Kubernetes would expand $(NAME): $ is doubled. */ -}}
{{- define "mnist-train.settings" -}}
{{- $defaults := .Files.Get "files/defaults.json" | fromJson -}}
{{- $settings := include "mnist-train.effective" . | fromJson -}}
{{- $arguments := list -}}
{{- range $section := keys $settings | sortAlpha -}}
{{- $fields := get $settings $section -}}
{{- range $field := keys $fields | sortAlpha -}}
{{- $value := get $fields $field -}}
{{- $default := get (get $defaults $section) $field -}}
{{- if and (kindIs "string" $value) (kindIs "float64" $default) (regexMatch "^[-+.0-9eE]+$" (toString $value)) -}}
{{- $value = float64 $value -}}
{{- end -}}
{{- $isNone := or (kindIs "invalid" $value) (and (kindIs "invalid" $default) (eq (toJson $value) `""`)) -}}
{{- if not (or $isNone (eq (toJson $value) (toJson $default))) -}}
{{- $text := kindIs "string" $value | ternary $value (toJson $value) -}}
{{- $arguments = append $arguments (printf "--%s.%s=%s" $section $field ($text | toString | replace "$" "$$")) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{ toJson $arguments }}
{{- end -}}

{{- /* The settings of the values, with what the chart knows better: where the volume is, how many GPUs. run.id is given apart. */ -}}
{{- define "mnist-train.effective" -}}
{{- $settings := dict -}}
{{- range $section, $_ := $.Files.Get "files/defaults.json" | fromJson -}}
{{- $_ := set $settings $section (deepCopy (get $.Values $section)) -}}
{{- end -}}
{{- $_ := unset $settings.run "id" -}}
{{- if not .Values.store.uri -}}
{{- $_ := set $settings.store "uri" "file:/data/store" -}}
{{- end -}}
{{- if and (include "mnist-train.hasVolume" .) (not .Values.data.cache_dir) -}}
{{- $_ := set $settings.data "cache_dir" "/data/cache" -}}
{{- end -}}
{{- with (include "mnist-train.gpus" . | fromJson).count -}}
{{- $_ := set $settings.cluster "expected_gpus" (int .) -}}
{{- end -}}
{{ toJson $settings }}
{{- end -}}

{{- /* One setting, or its default, as JSON. Takes (list $ SECTION FIELD). */ -}}
{{- define "mnist-train.setting" -}}
{{- $section := index . 1 -}}
{{- $field := index . 2 -}}
{{- with index . 0 -}}
{{- $value := get (get .Values $section) $field -}}
{{- if or (kindIs "invalid" $value) (not (hasKey (get .Values $section) $field)) -}}
{{- $value = get (get (.Files.Get "files/defaults.json" | fromJson) $section) $field -}}
{{- end -}}
{{ kindIs "string" $value | ternary $value (toJson $value) }}
{{- end -}}
{{- end -}}

{{- /*
The limit of a worker that is GPUs, as JSON: name and count, or nothing. A MIG device is one GPU to the process that sees it. mnist-k8s knows
the same names (k8s/submit.py).
*/ -}}
{{- define "mnist-train.gpus" -}}
{{- $found := dict -}}
{{- range $name, $count := .Values.resources.limits | default dict -}}
{{- if and (regexMatch "^(nvidia[.]com/(gpu|mig-[^/]+)|amd[.]com/gpu|gpu[.]intel[.]com/(i915|xe))$" $name) (int $count) -}}
{{- if $found -}}
{{- fail (printf "resources.limits must have GPUs of one kind, received %s and %s: leave one of them out" $found.name $name) -}}
{{- end -}}
{{- $found = dict "name" $name "count" (int $count) -}}
{{- end -}}
{{- end -}}
{{ toJson $found }}
{{- end -}}

{{- define "mnist-train.hasVolume" -}}
{{- if or (not .Values.store.uri) .Values.persistence.cache -}}true{{- end -}}
{{- end -}}

{{- /* Values that contradict each other, with the way out. */ -}}
{{- define "mnist-train.check" -}}
{{- $values := .Values -}}
{{- if hasPrefix "file:" ($values.store.uri | default "") -}}
{{- fail "store.uri must not be a folder inside the pod, which is gone with it: leave store.uri out to use a PVC (persistence.*), or name s3://, gs:// or az://" -}}
{{- end -}}
{{- if not (include "mnist-train.isSchedule" $values.schedule) -}}
{{- fail (printf "schedule must be five fields (minute, hour, day, month, weekday) such as \"0 3 * * *\", or a name such as @daily; received %q; a time zone goes into timeZone" $values.schedule) -}}
{{- end -}}
{{- if and $values.schedule (not $values.activeDeadlineSeconds) -}}
{{- fail "activeDeadlineSeconds must be set with a schedule, or one run that hangs blocks all later ones; for example --set activeDeadlineSeconds=7200" -}}
{{- end -}}
{{- if and $values.schedule $values.run.id -}}
{{- fail "run.id must not be set with a schedule: each of its runs gets its own id; leave run.id out" -}}
{{- end -}}
{{- if and $values.persistence.existingClaim $values.store.uri (not $values.persistence.cache) -}}
{{- fail "persistence.existingClaim is not used with store.uri: set persistence.cache=true to keep prepared data there, or leave one of them out" -}}
{{- end -}}
{{- $final := include "mnist-train.setting" (list . "checkpoint" "final_save_seconds") | float64 -}}
{{- if lt (float64 $values.terminationGracePeriodSeconds) (addf $final 10) -}}
{{- fail (printf "terminationGracePeriodSeconds must be at least 10 s more than checkpoint.final_save_seconds (%v), received %v; set it to %v" $final $values.terminationGracePeriodSeconds (addf $final 10)) -}}
{{- end -}}
{{- if and (eq $values.monitoring.scrape "podMonitor") (not (include "mnist-train.metricsPort" .)) -}}
{{- fail "monitoring.scrape=podMonitor needs the port that observe.metrics_port=0 or a loopback observe.metrics_address takes away: leave one of them out" -}}
{{- end -}}
{{- $gpus := include "mnist-train.gpus" . | fromJson -}}
{{- $expected := $values.cluster.expected_gpus -}}
{{- if and $gpus (not (kindIs "invalid" $expected)) (ne (int $gpus.count) (int $expected)) -}}
{{- fail (printf "cluster.expected_gpus (%v) must equal the limit %s (%v); leave it out, the chart sets it" $expected $gpus.name $gpus.count) -}}
{{- end -}}
{{- include "mnist-train.checkCredentials" . -}}
{{- include "mnist-train.checkNumbers" . -}}
{{- include "mnist-train.checkData" . -}}
{{- include "mnist-train.checkIgnored" . -}}
{{- include "mnist-train.checkVolume" . -}}
{{- include "mnist-train.checkQueue" . -}}
{{- include "mnist-train.checkNetworkPolicy" . -}}
{{- include "mnist-train.checkLists" . -}}
{{- include "mnist-train.checkMetadata" . -}}
{{- include "mnist-train.checkDns" . -}}
{{- if .Values.initContainers -}}
{{- include "mnist-train.checkInitContainers" . -}}
{{- end -}}
{{- include "mnist-train.checkExtraObjects" . -}}
{{- include "mnist-train.checkResources" (list "" "resources" .Values.resources) -}}
{{- include "mnist-train.checkResources" (list "" "test.resources" .Values.test.resources) -}}
{{- if include "mnist-train.hasSeveralWorkers" . -}}
{{- include "mnist-train.checkWorkers" . -}}
{{- end -}}
{{- end -}}

{{- /* Manifests, releases and records show the settings. The job refuses more forms of credentials (job/masking.py). */ -}}
{{- define "mnist-train.checkCredentials" -}}
{{- range $section, $_ := .Files.Get "files/defaults.json" | fromJson -}}
{{- range $field, $value := get $.Values $section | default dict -}}
{{- $text := regexReplaceAll "@sha[0-9]+:" (toJson $value) "" -}}
{{- $user := `//([^\s/"]*|[^\s/:@"]+:[^\s"]*)@` -}}
{{- $signature := `(?i)([?;&]|\\u0026)(x-(amz|goog)-(signature|credential|security-token)|sig|[-\w]*(signature|token|secret|passw|key)[-\w]*)=[^&;\s"]` -}}
{{- if or (regexMatch $user $text) (regexMatch $signature $text) -}}
{{- fail (printf "%s.%s must hold no credentials, as settings are recorded: give them as variables from a Secret (credentials.existingSecret, extraEnv)" $section $field) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- /* A schedule's suspend stops the CronJob, and no Job: there Kueue has no say. */ -}}
{{- define "mnist-train.checkQueue" -}}
{{- $values := .Values -}}
{{- if and $values.queueName $values.suspend (not $values.schedule) -}}
{{- fail (printf "suspend must not be true with queueName, received %q: Kueue suspends and starts the Job itself, and would undo it; leave suspend out, and hold the run with spec.active=false of its Workload" $values.queueName) -}}
{{- end -}}
{{- if and $values.queuePriorityClass (not $values.queueName) -}}
{{- fail (printf "queuePriorityClass needs queueName, received only %q: name the LocalQueue too, or leave it out (priorityClassName is that of pods)" $values.queuePriorityClass) -}}
{{- end -}}
{{- end -}}

{{- /* An empty list in a NetworkPolicy allows everything; and what no policy uses protects nothing. */ -}}
{{- define "mnist-train.checkNetworkPolicy" -}}
{{- $policy := .Values.networkPolicy -}}
{{- if $policy.enabled -}}
{{- range $name := list "egressCIDRs" "egressPorts" -}}
{{- if not (get $policy $name) -}}
{{- fail (printf "networkPolicy.%s must have at least one entry, received null, which would allow all of them: leave it out for the default, or name what is to be reached" $name) -}}
{{- end -}}
{{- end -}}
{{- else if $policy.extraEgress -}}
{{- fail "networkPolicy.extraEgress needs networkPolicy.enabled=true, or nothing is closed: set it, or leave extraEgress out" -}}
{{- else if and $policy.ingressFrom (not (include "mnist-train.hasSeveralWorkers" .)) -}}
{{- fail "networkPolicy.ingressFrom needs networkPolicy.enabled=true, or nothing is closed: set it, or leave ingressFrom out" -}}
{{- end -}}
{{- if and $policy.ingressFrom (not (include "mnist-train.metricsPort" .)) -}}
{{- fail "networkPolicy.ingressFrom needs the port that observe.metrics_port=0 or a loopback observe.metrics_address takes away: leave one of them out" -}}
{{- end -}}
{{- end -}}

{{- /* "true" for what Kubernetes reads as a schedule, or nothing. Takes the text. */ -}}
{{- define "mnist-train.isSchedule" -}}
{{- $month := "(0?[1-9]|1[0-2]|jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)" -}}
{{- $day := "(0?[0-6]|sun|mon|tue|wed|thu|fri|sat)" -}}
{{- $fields := list -}}
{{- range list "[0-5]?[0-9]" "([01]?[0-9]|2[0-3])" "(0?[1-9]|[12][0-9]|3[01])" $month $day -}}
{{- $item := printf "([*?]|%s(-%s)?)(/[1-9][0-9]*)?" . . -}}
{{- $fields = append $fields (printf "%s(,%s)*" $item $item) -}}
{{- end -}}
{{- $numbered := lower . -}}
{{- range $number, $name := list "sun" "mon" "tue" "wed" "thu" "fri" "sat" -}}
{{- $numbered = replace $name (toString $number) $numbered -}}
{{- end -}}
{{- range $number, $name := list "" "jan" "feb" "mar" "apr" "may" "jun" "jul" "aug" "sep" "oct" "nov" "dec" -}}
{{- $numbered = ternary $numbered (replace $name (toString $number) $numbered) (empty $name) -}}
{{- end -}}
{{- $isBackwards := false -}}
{{- range regexFindAll "[0-9]+-[0-9]+" $numbered -1 -}}
{{- $isBackwards = or $isBackwards (gt (splitList "-" . | first | atoi) (splitList "-" . | last | atoi)) -}}
{{- end -}}
{{- $names := "@(yearly|annually|monthly|weekly|daily|midnight|hourly)" -}}
{{- if regexMatch (printf "^(|%s|%s)$" $names (join " +" $fields)) (lower .) | and (not $isBackwards) -}}true{{- end -}}
{{- end -}}
