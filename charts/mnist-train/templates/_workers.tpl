{{/*
Several workers: pods that train one run together. docs/adr/0012-workers-in-kubernetes.md says why it is done so.
*/}}

{{- define "mnist-train.workers" -}}
{{ include "mnist-train.setting" (list . "cluster" "workers") }}
{{- end -}}

{{- define "mnist-train.hasSeveralWorkers" -}}
{{- if gt (include "mnist-train.workers" . | int) 1 -}}true{{- end -}}
{{- end -}}

{{- /* Of the whole run, as far as the values say it: wanted_replicas in job/runs/identity.py. */ -}}
{{- define "mnist-train.replicas" -}}
{{- $gpus := (include "mnist-train.gpus" . | fromJson).count | default .Values.cluster.expected_gpus | int -}}
{{- $cpus := include "mnist-train.setting" (list . "cluster" "cpu_replicas") | int -}}
{{ mul (include "mnist-train.workers" . | int) (default $cpus $gpus) }}
{{- end -}}

{{- /*
The headless Service that gives workers their host names. It begins with a letter, which Kubernetes before 1.36 asks of a
Service (KEP-5311) while a release may be called 2fast; and has 51 characters at most.
*/ -}}
{{- define "mnist-train.workersName" -}}
workers-{{ include "mnist-train.base" . }}
{{- end -}}

{{- define "mnist-train.workersPort" -}}2222{{- end -}}

{{- /* Where the workers are. Kubernetes puts in the Job's name and the index: the host of a worker is JOB-INDEX.SERVICE. */ -}}
{{- define "mnist-train.tfConfig" -}}
{{- $addresses := list -}}
{{- range $index := until (include "mnist-train.workers" . | int) -}}
{{- $addresses = append $addresses (printf "$(JOB_NAME)-%d.%s:%s" $index (include "mnist-train.workersName" $) (include "mnist-train.workersPort" $)) -}}
{{- end -}}
{"cluster":{"worker":{{ toJson $addresses }}},"task":{"type":"worker","index":$(WORKER_INDEX)}}
{{- end -}}

{{- /* Values that contradict several workers, with the way out. */ -}}
{{- define "mnist-train.checkWorkers" -}}
{{- $values := .Values -}}
{{- $workers := include "mnist-train.workers" . -}}
{{- if and (include "mnist-train.hasVolume" .) (not $values.persistence.existingClaim) (has "ReadWriteOncePod" $values.persistence.accessModes) -}}
{{- fail (printf "persistence.accessModes must not be ReadWriteOncePod with cluster.workers=%s, which is %s pods: set persistence.accessModes={ReadWriteMany}, or store.uri without persistence.cache" $workers $workers) -}}
{{- end -}}
{{- $peer := include "mnist-train.setting" (list . "cluster" "peer_timeout_seconds") | float64 -}}
{{- if lt (float64 $values.terminationGracePeriodSeconds) (addf $peer 10) -}}
{{- fail (printf "terminationGracePeriodSeconds must be at least 10 s more than cluster.peer_timeout_seconds (%v) with several workers, received %v; set it to %v" $peer $values.terminationGracePeriodSeconds (ceil (addf $peer 10))) -}}
{{- end -}}
{{- $start := include "mnist-train.setting" (list . "cluster" "start_timeout_seconds") | float64 -}}
{{- if and $values.activeDeadlineSeconds (le (float64 $values.activeDeadlineSeconds) $start) -}}
{{- fail (printf "activeDeadlineSeconds (%v) must be more than cluster.start_timeout_seconds (%v), for which workers wait for each other: raise it, or set cluster.start_timeout_seconds lower" $values.activeDeadlineSeconds $start) -}}
{{- end -}}
{{- if eq (include "mnist-train.setting" (list . "observe" "metrics_port")) (include "mnist-train.workersPort" .) -}}
{{- fail (printf "observe.metrics_port must not be %s, where workers listen for each other; take another, such as 9090" (include "mnist-train.workersPort" .)) -}}
{{- end -}}
{{- $batch := include "mnist-train.setting" (list . "train" "global_batch_size") | int -}}
{{- $replicas := include "mnist-train.replicas" . | int -}}
{{- if mod $batch $replicas -}}
{{- fail (printf "train.global_batch_size (%d) must be a multiple of the %d replicas of %s workers; set it to %d, or change cluster.workers" $batch $replicas $workers (add $batch (sub $replicas (mod $batch $replicas)))) -}}
{{- end -}}
{{- if eq (include "mnist-train.setting" (list . "train" "compile")) "xla" -}}
{{- fail "train.compile=xla works with one replica, not with several workers: leave it out, or set graph" -}}
{{- end -}}
{{- range $values.extraEnv -}}
{{- if has .name (list "TF_CONFIG" "WORKER_INDEX") -}}
{{- fail (printf "extraEnv must not set %s with several workers, because the chart does: leave it out" .name) -}}
{{- end -}}
{{- end -}}
{{- end -}}
