{{/*
The one description of a pod: Job, CronJob and the test all use it. Takes (dict "root" $ "arguments" LIST "isPeer" BOOL "resources" DICT);
a peer is one of several workers of a run. Without resources it has those of a run.
*/}}
{{- define "mnist-train.podSpec" -}}
{{- $root := .root -}}
{{- $values := $root.Values -}}
{{- $security := $values.podSecurityContext | default dict -}}
restartPolicy: Never
serviceAccountName: {{ include "mnist-train.serviceAccountName" $root | toJson }}
automountServiceAccountToken: false
enableServiceLinks: false
{{- if .isPeer }}
subdomain: {{ include "mnist-train.workersName" $root | toJson }}
{{- end }}
terminationGracePeriodSeconds: {{ $values.terminationGracePeriodSeconds | toJson }}
securityContext:
  runAsNonRoot: true
  {{- if not (kindIs "invalid" $values.runAsUser) }}
  runAsUser: {{ toJson $values.runAsUser }}
  runAsGroup: {{ toJson $values.runAsUser }}
  {{- if not $security.fsGroup }}
  fsGroup: {{ toJson $values.runAsUser }}
  {{- end }}
  {{- if not $security.fsGroupChangePolicy }}
  fsGroupChangePolicy: OnRootMismatch
  {{- end }}
  {{- end }}
  {{- range $name, $value := $security }}
  {{ $name }}: {{ toJson $value }}
  {{- end }}
  seccompProfile:
    type: RuntimeDefault
{{- with $values.initContainers }}
initContainers:
  {{- include "mnist-train.initContainers" $root | nindent 2 }}
{{- end }}
containers:
  - name: train
    image: {{ include "mnist-train.image" $root | toJson }}
    imagePullPolicy: {{ $values.image.pullPolicy }}
    args: {{ toJson .arguments }}
    env:
      - name: POD_UID
        valueFrom: {fieldRef: {apiVersion: v1, fieldPath: metadata.uid}}
      - name: POD_NAME
        valueFrom: {fieldRef: {apiVersion: v1, fieldPath: metadata.name}}
      - name: POD_NAMESPACE
        valueFrom: {fieldRef: {apiVersion: v1, fieldPath: metadata.namespace}}
      - name: JOB_NAME
        valueFrom: {fieldRef: {apiVersion: v1, fieldPath: "metadata.labels['batch.kubernetes.io/job-name']"}}
      - name: RELEASE
        value: {{ include "mnist-train.instance" $root | toJson }}
      - name: IMAGE
        value: {{ include "mnist-train.image" $root | toJson }}
      - name: CHART_VERSION
        value: {{ toJson $root.Chart.Version }}
      - name: RUN_ORIGIN
        value: schedule {{- /* what the release starts; mnist-k8s submit says manual */}}
      {{- if .isPeer }}
      {{- /* JOB_COMPLETION_INDEX cannot be used: Kubernetes puts it at the end of the list, and TF_CONFIG sees only what stands before it. */}}
      - name: WORKER_INDEX
        valueFrom: {fieldRef: {apiVersion: v1, fieldPath: "metadata.annotations['batch.kubernetes.io/job-completion-index']"}}
      - name: TF_CONFIG
        value: {{ include "mnist-train.tfConfig" $root | toJson }}
      {{- end }}
      {{- range $values.extraEnv }}
      - {{ toJson . }}
      {{- end }}
    {{- if or $values.credentials.existingSecret $values.envFrom }}
    envFrom:
      {{- with $values.credentials.existingSecret }}
      - secretRef:
          name: {{ toJson . }}
      {{- end }}
      {{- range $values.envFrom }}
      - {{ toJson . }}
      {{- end }}
    {{- end }}
    {{- $metricsPort := include "mnist-train.metricsPort" $root }}
    {{- if or $metricsPort .isPeer }}
    ports:
      {{- with $metricsPort }}
      - name: metrics
        containerPort: {{ . }}
        protocol: TCP
      {{- end }}
      {{- if .isPeer }}
      - name: workers
        containerPort: {{ include "mnist-train.workersPort" $root }}
        protocol: TCP
      {{- end }}
    {{- end }}
    resources: {{ default $values.resources .resources | toJson }}
    securityContext:
      {{- include "mnist-train.securityContext" . | nindent 6 }}
    terminationMessagePath: /dev/termination-log
    terminationMessagePolicy: File
    volumeMounts:
      {{- include "mnist-train.ownMounts" $root | nindent 6 }}
      {{- range $values.extraVolumeMounts }}
      - {{ toJson . }}
      {{- end }}
volumes:
  - name: tmp
    emptyDir: {}
  - name: work
    emptyDir: {}
  {{- if include "mnist-train.hasVolume" $root }}
  - name: data
    persistentVolumeClaim:
      claimName: {{ include "mnist-train.claimName" $root | toJson }}
  {{- end }}
  {{- range $values.extraVolumes }}
  - {{ toJson . }}
  {{- end }}
{{- with include "mnist-train.imagePullSecrets" $root | fromJsonArray }}
imagePullSecrets: {{ toJson . }}
{{- end }}
{{- if and $values.nodeSelector (not $values.queueName) }}
nodeSelector: {{ toJson $values.nodeSelector }}
{{- end }}
{{- with $values.tolerations }}
tolerations: {{ toJson . }}
{{- end }}
{{- with include "mnist-train.affinity" $root | fromJson }}
affinity: {{ toJson . }}
{{- end }}
{{- with $values.topologySpreadConstraints }}
topologySpreadConstraints: {{ toJson . }}
{{- end }}
{{- with $values.priorityClassName }}
priorityClassName: {{ toJson . }}
{{- end }}
{{- with $values.runtimeClassName }}
runtimeClassName: {{ toJson . }}
{{- end }}
{{- range $name := list "schedulerName" "dnsPolicy" "dnsConfig" "hostAliases" }}
{{- with get $values $name }}
{{ $name }}: {{ toJson . }}
{{- end }}
{{- end }}
{{- end -}}

{{- /* Of every container, whoever wrote it. */ -}}
{{- define "mnist-train.securityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{- /* The folders of the chart, in every container. */ -}}
{{- define "mnist-train.ownMounts" -}}
- name: tmp
  mountPath: /tmp
- name: work
  mountPath: /work
{{- if include "mnist-train.hasVolume" . }}
- name: data
  mountPath: /data
{{- end }}
{{- end -}}

{{- /* Containers that run before the training, or beside it (restartPolicy: Always); they may do no more than it. */ -}}
{{- define "mnist-train.initContainers" -}}
{{- range .Values.initContainers }}
{{- $mounts := concat (include "mnist-train.ownMounts" $ | fromYamlArray) (.volumeMounts | default list) }}
{{- $hardened := dict "securityContext" (include "mnist-train.securityContext" $ | fromYaml) "volumeMounts" $mounts }}
- {{ include "mnist-train.merged" (list . $hardened) }}
{{- end }}
{{- end -}}

{{- /*
The affinity of the values. With a queue it takes in nodeSelector: Kueue writes that field of an admitted Job itself, and a server-side
apply of both would be a conflict. A term without conditions matches no node, and stays as it is.
*/ -}}
{{- define "mnist-train.affinity" -}}
{{- $affinity := deepCopy (.Values.affinity | default dict) -}}
{{- range $kind := list "podAffinity" "podAntiAffinity" -}}
{{- $of := get $affinity $kind | default dict -}}
{{- $terms := get $of "requiredDuringSchedulingIgnoredDuringExecution" | default list -}}
{{- range get $of "preferredDuringSchedulingIgnoredDuringExecution" | default list -}}
{{- $terms = append $terms .podAffinityTerm -}}
{{- end -}}
{{- range $term := $terms -}}
{{- range $key := $term.matchLabelKeys -}}
{{- if has $key ($term.mismatchLabelKeys | default list) -}}
{{- fail (printf "affinity.%s must not have a key in matchLabelKeys and in mismatchLabelKeys, received %s in both; leave it out of one" $kind $key) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if and .Values.queueName .Values.nodeSelector -}}
{{- $wanted := list -}}
{{- range $key, $value := .Values.nodeSelector -}}
{{- $wanted = append $wanted (dict "key" $key "operator" "In" "values" (list $value)) -}}
{{- end -}}
{{- $nodes := get $affinity "nodeAffinity" | default dict -}}
{{- $terms := list -}}
{{- range (get $nodes "requiredDuringSchedulingIgnoredDuringExecution" | default dict).nodeSelectorTerms -}}
{{- $all := dict "matchExpressions" (concat (.matchExpressions | default list) $wanted) -}}
{{- $terms = append $terms (ternary (merge $all .) . (not (not (or .matchExpressions .matchFields)))) -}}
{{- end -}}
{{- $terms = $terms | default (list (dict "matchExpressions" $wanted)) -}}
{{- $_ := set $nodes "requiredDuringSchedulingIgnoredDuringExecution" (dict "nodeSelectorTerms" $terms) -}}
{{- $_ := set $affinity "nodeAffinity" $nodes -}}
{{- end -}}
{{ toJson $affinity }}
{{- end -}}

{{- /* Labels and annotations of every pod. */ -}}
{{- define "mnist-train.podMetadata" -}}
{{- $cloud := dict -}}
{{- if get .Values.serviceAccount.annotations "azure.workload.identity/client-id" -}}
{{- $_ := set $cloud "azure.workload.identity/use" "true" -}} {{- /* AKS gives a token to pods with this label only */ -}}
{{- end }}
labels: {{ include "mnist-train.merged" (list $cloud .Values.commonLabels .Values.podLabels (include "mnist-train.selectorLabels" . | fromYaml)) }}
{{- with include "mnist-train.merged" (list .Values.commonAnnotations .Values.podAnnotations) | fromJson }}
annotations: {{ toJson . }}
{{- end }}
{{- end -}}

{{- /*
The spec of the Job, also of those that the CronJob makes. Takes (dict "root" $ "runId" ID).
The exit codes are those of job/contract.py; what is not named here counts against backoffLimit. Why several workers differ:
docs/adr/0012-workers-in-kubernetes.md.
*/ -}}
{{- define "mnist-train.jobSpec" -}}
{{- $values := .root.Values -}}
{{- $several := include "mnist-train.hasSeveralWorkers" .root -}}
{{- if $several -}}
completionMode: Indexed
completions: {{ include "mnist-train.workers" .root }}
parallelism: {{ include "mnist-train.workers" .root }}
backoffLimitPerIndex: {{ toJson $values.backoffLimit }} # one fault ends every worker: each counts its own
maxFailedIndexes: 0
successPolicy:
  rules:
    - succeededIndexes: "0" # it has committed the run
{{ else -}}
backoffLimit: {{ toJson $values.backoffLimit }}
{{ end -}}
podReplacementPolicy: Failed
podFailurePolicy:
  rules:
    - action: Ignore
      onPodConditions:
        - type: DisruptionTarget
          status: "True"
    {{- if $several }}
    - action: Ignore # one worker was told to stop; all have stopped after the same step
      onExitCodes:
        containerName: train
        operator: In
        values: [75]
    {{- end }}
    - action: FailJob
      onExitCodes:
        containerName: train
        operator: In
        values: [{{ (.root.Files.Get "files/exit-codes.json" | fromJson).failJob | join ", " }}]
{{- with $values.activeDeadlineSeconds }}
activeDeadlineSeconds: {{ toJson . }}
{{- end }}
{{- if not (kindIs "invalid" $values.ttlSecondsAfterFinished) }}
ttlSecondsAfterFinished: {{ toJson $values.ttlSecondsAfterFinished }}
{{- end }}
template:
  metadata:
    {{- $metadata := include "mnist-train.podMetadata" .root | fromYaml }}
    labels: {{ toJson $metadata.labels }}
    {{- with mergeOverwrite (include "mnist-train.scrapeAnnotations" .root | fromYaml) (default dict $metadata.annotations) }}
    annotations: {{ toJson . }}
    {{- end }}
  spec:
    {{- $arguments := concat (list "run" (printf "--run.id=%s" .runId)) (include "mnist-train.settings" .root | fromJsonArray) }}
    {{- include "mnist-train.podSpec" (dict "root" .root "arguments" $arguments "isPeer" $several) | nindent 4 }}
{{- end -}}

{{- /* Where /metrics is served to other pods; nothing when it is not. */ -}}
{{- define "mnist-train.metricsPort" -}}
{{- $address := .Values.observe.metrics_address | default "" -}}
{{- if not (regexMatch "^127[.]|^[0:]*:0{0,3}1$" $address) -}}
{{- $default := get (get (.Files.Get "files/defaults.json" | fromJson) "observe") "metrics_port" -}}
{{- with ternary $default .Values.observe.metrics_port (kindIs "invalid" .Values.observe.metrics_port) -}}
{{ int . }}
{{- end -}}
{{- end -}}
{{- end -}}

{{- /* What a Prometheus looks for that finds its targets by annotations; pods that users may annotate otherwise. */ -}}
{{- define "mnist-train.scrapeAnnotations" -}}
{{- $port := include "mnist-train.metricsPort" . -}}
{{- if and $port (eq .Values.monitoring.scrape "annotations") -}}
prometheus.io/scrape: "true"
prometheus.io/port: {{ $port | quote }}
prometheus.io/path: /metrics
{{- end -}}
{{- end -}}

{{- /* Labels of a Job. */ -}}
{{- define "mnist-train.jobLabels" -}}
{{ include "mnist-train.ownLabels" . }}
{{- with include "mnist-train.queueLabels" . }}
{{ . }}
{{- end }}
{{- end -}}

{{- /* What Kueue reads; nothing without a queue. Why they are part of the Job's name: docs/adr/0037-kueue-and-networkpolicy.md. */ -}}
{{- define "mnist-train.queueLabels" -}}
{{- with .Values.queueName -}}
kueue.x-k8s.io/queue-name: {{ toJson . }}
{{- with $.Values.queuePriorityClass }}
kueue.x-k8s.io/priority-class: {{ toJson . }}
{{- end }}
{{- end -}}
{{- end -}}

{{- /*
Whether the PVC would stay without a pod: a schedule waits for its time, a suspended run for its user. A queued run is left to the
queue, where a second Job would only take its room.
*/ -}}
{{- define "mnist-train.needsBinding" -}}
{{- $makesClaim := and (include "mnist-train.hasVolume" .) (not .Values.persistence.existingClaim) -}}
{{- if and $makesClaim .Values.persistence.bind (or .Values.schedule .Values.suspend) (ne (toJson .Values.enabled) "false") -}}true{{- end -}}
{{- end -}}

{{- /*
The pod of a run with another command: the same requests and places, so that the volume lands where runs fit. Beside a pod of the
release, if there is one: a volume may be on one node only, and elsewhere this pod would hold its devices until that one ends.
*/ -}}
{{- define "mnist-train.bindPod" -}}
{{- $pod := include "mnist-train.podSpec" (dict "root" . "arguments" (list "-c" "")) | fromYaml -}}
{{- $container := index $pod.containers 0 -}}
{{- $folders := list "tmp" "work" "data" -}} {{- /* not extraVolumes, whose Secrets may come later */ -}}
{{- $mounts := list -}}
{{- range $container.volumeMounts -}}
{{- $mounts = has .name $folders | ternary (append $mounts .) $mounts -}}
{{- end -}}
{{- $volumes := list -}}
{{- range $pod.volumes -}}
{{- $volumes = has .name $folders | ternary (append $volumes .) $volumes -}}
{{- end -}}
{{- $bind := merge (dict "name" "bind" "command" (list "python") "volumeMounts" $mounts) (omit $container "name" "env" "envFrom" "ports") -}}
{{- $selector := dict "matchLabels" (include "mnist-train.selectorLabels" . | fromYaml) -}}
{{- $beside := list (dict "topologyKey" "kubernetes.io/hostname" "labelSelector" $selector) -}}
{{- $affinity := merge (omit (default dict $pod.affinity) "podAntiAffinity") (dict "podAffinity" (dict "requiredDuringSchedulingIgnoredDuringExecution" $beside)) -}}
{{ merge (dict "containers" (list $bind) "affinity" $affinity "volumes" $volumes) (omit $pod "containers" "initContainers" "affinity") | toJson }}
{{- end -}}

{{- /*
The Job's name follows its whole spec and its queue, which cannot be changed in place: other memory is another Job of the same run.
*/ -}}
{{- define "mnist-train.jobName" -}}
{{- $spec := include "mnist-train.jobSpec" (dict "root" . "runId" (include "mnist-train.runId" .)) -}}
{{- $queue := include "mnist-train.queueLabels" . -}}
{{ include "mnist-train.base" . }}-{{ printf "%s retry %s%s" (fromYaml $spec | toJson) (toJson .Values.retry) $queue | sha256sum | trunc 8 }}
{{- end -}}

{{- /* Takes (list NAME FIELD ENTRIES): no two entries have the same in that field. */ -}}
{{- define "mnist-train.checkUnique" -}}
{{- $seen := list -}}
{{- range index . 2 -}}
{{- $key := get . (index $ 1) -}}
{{- if has $key $seen -}}
{{- fail (printf "%s must not have two entries with the %s %q: leave one of them out" (first $) (index $ 1) $key) -}}
{{- end -}}
{{- $seen = append $seen $key -}}
{{- end -}}
{{- end -}}

{{- /* Lists whose entries the API server tells apart by one field. */ -}}
{{- define "mnist-train.checkLists" -}}
{{- range $name, $field := dict "imagePullSecrets" "name" "extraEnv" "name" "extraVolumes" "name" "extraVolumeMounts" "mountPath" "hostAliases" "ip" "initContainers" "name" -}}
{{- include "mnist-train.checkUnique" (list $name $field (index $.Values $name)) -}}
{{- end -}}
{{- $seen := list -}}
{{- range .Values.topologySpreadConstraints -}}
{{- $key := printf "%s %s" .topologyKey .whenUnsatisfiable -}}
{{- if has $key $seen -}}
{{- fail (printf "topologySpreadConstraints must not have two entries for %s: leave one of them out" $key) -}}
{{- end -}}
{{- $seen = append $seen $key -}}
{{- end -}}
{{- $volumes := list "tmp" "work" -}}
{{- if include "mnist-train.hasVolume" . -}}
{{- $volumes = append $volumes "data" -}}
{{- end -}}
{{- range .Values.extraVolumes -}}
{{- $volumes = append $volumes .name -}}
{{- end -}}
{{- range .Values.extraVolumeMounts -}}
{{- if not (has .name $volumes) -}}
{{- fail (printf "extraVolumeMounts must name a volume of extraVolumes, received %q; there are %s" .name (join ", " $volumes)) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- /* A quantity of Kubernetes, such as 500m, 2 or 1.5Gi, as a number. */ -}}
{{- define "mnist-train.quantity" -}}
{{- $text := kindIs "string" . | ternary . (printf "%f" (float64 .)) -}}
{{- $factors := dict "m" 0.001 "k" 1e3 "M" 1e6 "G" 1e9 "T" 1e12 "Ki" 1024.0 "Mi" 1048576.0 "Gi" 1073741824.0 "Ti" 1099511627776.0 -}}
{{ mulf (regexFind "^[0-9.]+" $text | float64) (get $factors (regexFind "[A-Za-z]+$" $text) | default 1.0) }}
{{- end -}}

{{- /* What the API server asks of requests and limits: never more than the limit, and of devices exactly the limit. Takes (list OWNER NAME VALUE). */ -}}
{{- define "mnist-train.checkResources" -}}
{{- $owner := index . 0 -}}
{{- $where := index . 1 -}}
{{- $resources := index . 2 | default dict -}}
{{- $limits := $resources.limits | default dict -}}
{{- range $name, $request := $resources.requests | default dict -}}
{{- $isWhole := or (contains "/" $name) (hasPrefix "hugepages-" $name) -}}
{{- $limit := get $limits $name -}}
{{- if and $isWhole (not (hasKey $limits $name)) -}}
{{- fail (printf "%s%s.requests.%s needs a limit of the same: set %s.limits.%s to %v" $owner $where $name $where $name $request) -}}
{{- end -}}
{{- if hasKey $limits $name -}}
{{- $requested := include "mnist-train.quantity" $request | float64 -}}
{{- $allowed := include "mnist-train.quantity" $limit | float64 -}}
{{- if or (gt $requested $allowed) (and $isWhole (lt $requested $allowed)) -}}
{{- fail (printf "%s%s.requests.%s must %s %s.limits.%s (%v), received %v; %s" $owner $where $name (ternary "equal" "be at most" $isWhole) $where $name $limit $request (ternary "make them equal" "raise the limit" $isWhole)) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}


{{- /* Volumes, requests and lists of init containers, as for the training itself. */ -}}
{{- define "mnist-train.checkInitContainers" -}}
{{- $volumes := list -}}
{{- range (include "mnist-train.podSpec" (dict "root" . "arguments" list) | fromYaml).volumes -}}
{{- $volumes = append $volumes .name -}}
{{- end -}}
{{- range $index, $container := .Values.initContainers -}}
{{- $where := printf "initContainers[%d]" $index -}}
{{- include "mnist-train.checkUnique" (list (printf "%s.env" $where) "name" .env) -}}
{{- include "mnist-train.checkUnique" (list (printf "%s.volumeMounts" $where) "mountPath" .volumeMounts) -}}
{{- range .volumeMounts -}}
{{- if not (has .name $volumes) -}}
{{- fail (printf "%s.volumeMounts must name a volume of extraVolumes, received %q; there are %s" $where .name (join ", " $volumes)) -}}
{{- end -}}
{{- end -}}
{{- include "mnist-train.checkResources" (list (printf "%s." $where) "resources" .resources) -}}
{{- end -}}
{{- end -}}

{{- /* DNS that the pods could not use. */ -}}
{{- define "mnist-train.checkDns" -}}
{{- if and (eq .Values.dnsPolicy "None") (not (.Values.dnsConfig | default dict).nameservers) -}}
{{- fail "dnsPolicy=None needs the servers to ask: set dnsConfig.nameservers, or leave dnsPolicy out" -}}
{{- end -}}
{{- if and (eq .Values.dnsPolicy "Default") (include "mnist-train.hasSeveralWorkers" .) -}}
{{- fail "dnsPolicy must not be Default with several workers, which find each other by the names of the cluster's DNS: leave dnsPolicy out" -}}
{{- end -}}
{{- end -}}
