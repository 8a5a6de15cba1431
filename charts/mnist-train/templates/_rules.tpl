{{/*
The alerts of files/rules.yaml for this release. Prometheus' own {{ }} stand in that file, which Helm reads as data, not as a template.
*/}}

{{- /* What stands for each [[NAME]], as a JSON map. Two releases must not fire each other's alerts: each matcher names this one. */ -}}
{{- define "mnist-train.rulePlaces" -}}
{{- $base := include "mnist-train.base" . -}}
{{- $namespace := printf "namespace=%s," (toJson .Release.Namespace) -}}
{{- $job := "([0-9a-f]{8}|[a-z0-9]{10})" -}} {{- /* of the chart and of a schedule; of mnist-k8s */ -}}
{{- $pod := printf "pod=~%s," (printf "%s-%s(-[0-9]{1,4})?-[a-z0-9]{5}" $base $job | toJson) -}}
{{- $places := dict
  "pushed" (printf "%srelease=%s,origin=\"schedule\"," $namespace (include "mnist-train.instance" . | toJson))
  "live" (eq .Values.monitoring.scrape "podMonitor" | ternary (printf "job=%s," (printf "%s/%s" .Release.Namespace $base | toJson)) (print $namespace $pod))
  "cronjob" (printf "%scronjob=%s," $namespace (toJson $base))
  "jobs" (printf "%sjob_name=~%s," $namespace (printf "%s-[0-9]{8}" $base | toJson))
  "pods" (print $namespace $pod)
  "release" (include "mnist-train.instance" . | toJson)
-}}
{{- $thresholds := .Values.monitoring.rules.thresholds -}}
{{- /* With the default settings these are the numbers of rules.yaml. */ -}}
{{- $ofSettings := dict
  "endSeconds" .Values.activeDeadlineSeconds
  "stalledSeconds" (mulf 0.8 (include "mnist-train.setting" (list . "observe" "stall_timeout_seconds")))
  "slowCheckpointSeconds" (mulf 0.75 (include "mnist-train.setting" (list . "checkpoint" "final_save_seconds")))
  "oldCheckpointSeconds" (mulf 20 (include "mnist-train.setting" (list . "checkpoint" "interval_seconds")))
-}}
{{- range $name, $default := (.Files.Get "files/rules.yaml" | fromYaml).thresholds -}}
{{- $value := get $thresholds $name -}}
{{- $isUnset := or (not (hasKey $thresholds $name)) (kindIs "invalid" $value) -}}
{{- $derived := get $ofSettings $name | default $default -}}
{{- $_ := set $places $name (ternary $derived $value $isUnset | toJson) -}}
{{- end -}}
{{- $period := get $places "periodSeconds" | int64 -}}
{{- $_ := set $places "graceSeconds" (add $period (get $places "endSeconds" | int64) | toJson) -}}
{{- $_ := set $places "nightSeconds" (min $period 86400 | toJson) -}}
{{ toJson $places }}
{{- end -}}

{{- /* The matchers that match nothing here, as a JSON list: rules with one of them are left out. */ -}}
{{- define "mnist-train.ruleGaps" -}}
{{- $gaps := list -}}
{{- if or (not .Values.schedule) .Values.suspend -}}
{{- $gaps = list "[[pushed]]" "[[cronjob]]" "[[jobs]]" -}}
{{- end -}}
{{- if not .Values.observe.pushgateway_url -}}
{{- $gaps = append $gaps "[[pushed]]" -}}
{{- end -}}
{{- if not (include "mnist-train.metricsPort" .) -}}
{{- $gaps = append $gaps "[[live]]" -}}
{{- end -}}
{{ toJson $gaps }}
{{- end -}}

{{- /* A text with what stands for each [[NAME]]. Takes (list TEXT PLACES). */ -}}
{{- define "mnist-train.filledRule" -}}
{{- $text := first . -}}
{{- range $name, $value := last . -}}
{{- $text = replace (printf "[[%s]]" $name) $value $text -}}
{{- end -}}
{{ $text }}
{{- end -}}

{{- /* One rule as Prometheus reads it, as JSON, or nothing where it is left out. Takes (list $ RULE). */ -}}
{{- define "mnist-train.rule" -}}
{{- $root := first . -}}
{{- $rule := last . -}}
{{- $wanted := $root.Values.monitoring.rules -}}
{{- $severity := get $wanted.severities $rule.alert | default $rule.severity -}}
{{- $isLeftOut := eq $severity "none" -}}
{{- range include "mnist-train.ruleGaps" $root | fromJsonArray -}}
{{- $isLeftOut = or $isLeftOut (contains . $rule.expr) -}}
{{- end -}}
{{- if not $isLeftOut -}}
{{- $own := dict "severity" $severity "release" (include "mnist-train.instance" $root) -}}
{{- $annotations := dict "summary" $rule.summary "description" $rule.description "runbook_url" (printf "%s#%s" $wanted.runbookUrl $rule.runbook) -}}
{{- $made := dict "alert" $rule.alert "expr" $rule.expr "labels" (include "mnist-train.merged" (list $wanted.alertLabels $own) | fromJson) "annotations" $annotations -}}
{{- with get $rule "for" -}}
{{- $_ := set $made "for" . -}}
{{- end -}}
{{ toJson $made }}
{{- end -}}
{{- end -}}

{{- /* The groups, as JSON; one without rules is left out. */ -}}
{{- define "mnist-train.ruleGroups" -}}
{{- $groups := list -}}
{{- range (.Files.Get "files/rules.yaml" | fromYaml).groups -}}
{{- $rules := list -}}
{{- range .rules -}}
{{- with include "mnist-train.rule" (list $ .) -}}
{{- $rules = append $rules (fromJson .) -}}
{{- end -}}
{{- end -}}
{{- if $rules -}}
{{- $groups = append $groups (dict "name" (printf "%s-%s" (include "mnist-train.base" $) .name) "rules" $rules) -}}
{{- end -}}
{{- end -}}
{{ toJson $groups }}
{{- end -}}
