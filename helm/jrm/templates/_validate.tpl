{{/* What values.schema.json cannot say: what one value means for another. Every problem at once, with its remedy. */}}
{{- define "jrm.validate" -}}
{{- $problems := list -}}
{{- $values := .Values -}}

{{- if not (or $values.score.enabled $values.explain.enabled) -}}
{{- $problems = append $problems "score.enabled and explain.enabled are both false: nothing would run" -}}
{{- end -}}

{{- $checkpoint := $values.checkpoint -}}
{{- $needed := dict "pvc" "claimName" "image" "reference" "hub" "repo" "objectStore" "remote" -}}
{{- range $source := keys $needed | sortAlpha -}}
{{- $key := get $needed $source -}}
{{- $given := get (get $checkpoint $source) $key -}}
{{- if and (eq $source $checkpoint.source) (not $given) -}}
{{- $problems = append $problems (printf "checkpoint.source is %s: checkpoint.%s.%s is missing" $source $source $key) -}}
{{- else if and (ne $source $checkpoint.source) $given -}}
{{- $problems = append $problems (printf "checkpoint.%s.%s is set, but checkpoint.source is %s: choose one" $source $key $checkpoint.source) -}}
{{- end -}}
{{- end -}}
{{- if and $checkpoint.fingerprint (eq $checkpoint.source "bundled") -}}
{{- $problems = append $problems "checkpoint.fingerprint is for a checkpoint of yours: checkpoint.source is bundled" -}}
{{- end -}}
{{- if and $checkpoint.store.claimName (not (include "jrm.checkpoint.fetched" .)) -}}
{{- $problems = append $problems (printf "checkpoint.store.claimName is for checkpoints that are fetched or copied: checkpoint.source is %s" $checkpoint.source) -}}
{{- end -}}

{{- $redis := $values.redis -}}
{{- $external := compact (list $redis.external.url $redis.external.existingSecret) -}}
{{- if and (eq $redis.mode "external") (ne (len $external) 1) -}}
{{- $problems = append $problems "redis.mode is external: set one of redis.external.url and redis.external.existingSecret" -}}
{{- else if and (ne $redis.mode "external") $external -}}
{{- $problems = append $problems (printf "redis.external is set, but redis.mode is %s" $redis.mode) -}}
{{- end -}}
{{- if and (ne $redis.mode "internal") $redis.internal.existingSecret -}}
{{- $problems = append $problems (printf "redis.internal.existingSecret is set, but redis.mode is %s" $redis.mode) -}}
{{- end -}}

{{- $scaling := $values.score.autoscaling -}}
{{- if ne $scaling.kind "none" -}}
{{- if not $values.score.enabled -}}
{{- $problems = append $problems (printf "score.autoscaling.kind is %s, but score.enabled is false" $scaling.kind) -}}
{{- end -}}
{{- if ne (int $values.score.replicas) 1 -}}
{{- $problems = append $problems (printf "score.replicas is %d, but score.autoscaling.kind is %s: set score.autoscaling.minReplicas instead" (int $values.score.replicas) $scaling.kind) -}}
{{- end -}}
{{- if gt (int $scaling.minReplicas) (int $scaling.maxReplicas) -}}
{{- $problems = append $problems (printf "score.autoscaling.minReplicas is %d, more than maxReplicas, %d" (int $scaling.minReplicas) (int $scaling.maxReplicas)) -}}
{{- end -}}
{{- end -}}
{{- if and (eq $scaling.kind "keda") (not $scaling.keda.serverAddress) -}}
{{- $problems = append $problems "score.autoscaling.kind is keda: score.autoscaling.keda.serverAddress, the URL of Prometheus, is missing" -}}
{{- else if and (ne $scaling.kind "keda") $scaling.keda.serverAddress -}}
{{- $problems = append $problems (printf "score.autoscaling.keda is set, but score.autoscaling.kind is %s: choose one" $scaling.kind) -}}
{{- end -}}

{{- if and $values.ingress.enabled (not $values.ingress.hosts) -}}
{{- $problems = append $problems "ingress.enabled is true: ingress.hosts is empty" -}}
{{- end -}}
{{- if and $values.gateway.enabled (not $values.gateway.parentRefs) -}}
{{- $problems = append $problems "gateway.enabled is true: gateway.parentRefs is empty" -}}
{{- end -}}

{{- $loading := mul (int $values.probes.startup.periodSeconds) (int $values.probes.startup.failureThreshold) -}}
{{- if le (int $values.progressDeadlineSeconds) (int $loading) -}}
{{- $problems = append $problems (printf "progressDeadlineSeconds is %d, but probes.startup lets a pod load for %d s: a rollout would fail that goes well" (int $values.progressDeadlineSeconds) (int $loading)) -}}
{{- end -}}

{{- range $name := list "score" "explain" -}}
{{- if (index $values $name).enabled -}}
{{- $problems = concat $problems (include "jrm.validate.role" (dict "root" $ "role" $name) | fromYamlArray) -}}
{{- end -}}
{{- end -}}

{{- if $problems -}}
{{- fail (printf "\n\nThese values do not go together:\n  - %s\n" (join "\n  - " $problems)) -}}
{{- end -}}
{{- end -}}

{{/* The problems of a role as a YAML list, from (dict "root" $ "role" "score"). */}}
{{- define "jrm.validate.role" -}}
{{- $problems := list -}}
{{- $name := .role -}}
{{- $values := .root.Values -}}
{{- $role := index $values $name -}}

{{- if and (eq (toString $role.strategy.maxSurge | trimSuffix "%" | int) 0) (eq (toString $role.strategy.maxUnavailable | trimSuffix "%" | int) 0) -}}
{{- $problems = append $problems (printf "%s.strategy: maxSurge and maxUnavailable are both 0, so that no rollout could begin" $name) -}}
{{- end -}}

{{- $fewest := int $role.replicas -}}
{{- if ne (dig "autoscaling" "kind" "none" $role) "none" -}}
{{- $fewest = int $role.autoscaling.minReplicas -}}
{{- end -}}
{{- $budget := $role.podDisruptionBudget -}}
{{- if $budget.enabled -}}
{{- if kindIs "invalid" $budget.minAvailable -}}
{{- if eq (toString (default 0 $budget.maxUnavailable) | trimSuffix "%" | int) 0 -}}
{{- $problems = append $problems (printf "%s.podDisruptionBudget.maxUnavailable is 0: no node could ever be drained" $name) -}}
{{- end -}}
{{- else -}}
{{- $needed := int $budget.minAvailable -}}
{{- if kindIs "string" $budget.minAvailable -}}
{{- $needed = ceil (divf (mulf (trimSuffix "%" $budget.minAvailable | int) $fewest) 100) | int -}}
{{- end -}}
{{- if ge $needed $fewest -}}
{{- $problems = append $problems (printf "%s.podDisruptionBudget.minAvailable is %v, but there may be no more than %d pods: no node could ever be drained" $name $budget.minAvailable $fewest) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- range $part := list "requests" "limits" -}}
{{- if hasKey (default dict (get $role.resources $part)) $values.gpu.resource -}}
{{- $problems = append $problems (printf "%s.resources.%s has %s: set %s.gpus instead" $name $part $values.gpu.resource $name) -}}
{{- end -}}
{{- end -}}

{{- range $role.extraEnv -}}
{{- if hasPrefix "JRM_" .name -}}
{{- $problems = append $problems (printf "%s.extraEnv has %s: it belongs into %s.settings" $name .name $name) -}}
{{- end -}}
{{- end -}}

{{- if and (eq $name "explain") (eq (toString (default $values.settings.backend $role.settings.backend)) "fake") -}}
{{- $problems = append $problems "explain.enabled is true, but the backend is fake and has no language head" -}}
{{- end -}}
{{- if and (eq $name "explain") (eq (int $role.gpus) 0) (not (or $values.image.tag $values.image.digest)) -}}
{{- $problems = append $problems "explain.gpus is 0, but the -cpu image has no vLLM: set explain.gpus to 1, or image.tag to an image that has" -}}
{{- end -}}
{{- if ge (int $role.minReadySeconds) (int $values.progressDeadlineSeconds) -}}
{{- $problems = append $problems (printf "%s.minReadySeconds must be less than progressDeadlineSeconds" $name) -}}
{{- end -}}
{{- toYaml $problems -}}
{{- end -}}
