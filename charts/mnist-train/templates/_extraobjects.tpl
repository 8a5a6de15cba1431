{{/*
Objects that users add. docs/adr/0035-extra-objects.md says which, and why not all.
*/}}

{{- /* What cannot be a part of this release, with the way out. */ -}}
{{- define "mnist-train.checkExtraObjects" -}}
{{- $base := include "mnist-train.base" . -}}
{{- $seen := list (printf "networking.k8s.io NetworkPolicy %s" $base) (printf "monitoring.coreos.com PodMonitor %s" $base) (printf "monitoring.coreos.com PrometheusRule %s" $base) (printf " PersistentVolumeClaim %s-store" $base) -}}
{{- range $index, $object := .Values.extraObjects -}}
{{- $where := printf "extraObjects[%d]" $index -}}
{{- $group := ternary (splitList "/" .apiVersion | first) "" (contains "/" .apiVersion) -}}
{{- $isOfKubernetes := or (not (contains "." $group)) (and (hasSuffix ".k8s.io" $group) (not (hasSuffix ".x-k8s.io" $group))) -}}
{{- if and $isOfKubernetes (not (has .kind (list "ConfigMap" "PersistentVolumeClaim" "NetworkPolicy" "PodDisruptionBudget"))) -}}
{{- fail (printf "%s must be a ConfigMap, PersistentVolumeClaim, NetworkPolicy, PodDisruptionBudget or an object of a CustomResourceDefinition whose group is not one of *.k8s.io, received %s %s: install it apart from this release" $where .apiVersion .kind) -}}
{{- end -}}
{{- if hasKey . "items" -}}
{{- fail (printf "%s must be one object, received a list (items): make each its own entry of extraObjects" $where) -}}
{{- end -}}
{{- if ne (default $.Release.Namespace .metadata.namespace) $.Release.Namespace -}}
{{- fail (printf "%s.metadata.namespace must be that of the release (%s), received %s: leave it out" $where $.Release.Namespace .metadata.namespace) -}}
{{- end -}}
{{- $key := printf "%s %s %s" $group .kind .metadata.name -}}
{{- if has $key $seen -}}
{{- fail (printf "%s must not be another %s %s of this release: take another name" $where .kind .metadata.name) -}}
{{- end -}}
{{- $seen = append $seen $key -}}
{{- end -}}
{{- end -}}
