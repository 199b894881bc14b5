{{/* What values.schema.json cannot express: conflicts between values. Reports all problems at once, with remedies. */}}
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
{{- $value := get (get $checkpoint $source) $key -}}
{{- if and (eq $source $checkpoint.source) (not $value) -}}
{{- $problems = append $problems (printf "checkpoint.source is %s: checkpoint.%s.%s is missing" $source $source $key) -}}
{{- else if and (ne $source $checkpoint.source) $value -}}
{{- $problems = append $problems (printf "checkpoint.%s.%s is set, but checkpoint.source is %s: choose one" $source $key $checkpoint.source) -}}
{{- end -}}
{{- end -}}
{{- if and $checkpoint.fingerprint (eq $checkpoint.source "bundled") -}}
{{- $problems = append $problems "checkpoint.fingerprint is for a checkpoint of yours, but checkpoint.source is bundled" -}}
{{- end -}}
{{- if and $checkpoint.store.claimName (not (include "jrm.checkpoint.fetched" .)) -}}
{{- $problems = append $problems (printf "checkpoint.store.claimName is for checkpoints that are fetched or copied, but checkpoint.source is %s" $checkpoint.source) -}}
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
{{- else if and (eq $scaling.kind "hpa") $scaling.keda.serverAddress -}}
{{- $problems = append $problems "score.autoscaling.keda is set, but score.autoscaling.kind is hpa: choose one" -}}
{{- end -}}
{{- if and $scaling.keda.authentication (kindIs "invalid" $scaling.keda.authModes) -}}
{{- $problems = append $problems "score.autoscaling.keda.authentication is set: set authModes too, to what it authenticates with (basic, bearer, tls), or to \"\" for a pod's identity" -}}
{{- else if and $scaling.keda.authModes (not $scaling.keda.authentication) -}}
{{- $problems = append $problems "score.autoscaling.keda.authModes is set, but authentication, the name of a TriggerAuthentication, is missing" -}}
{{- end -}}

{{- $monitor := $values.monitoring.serviceMonitor -}}
{{- if $monitor.enabled -}}
{{- $interval := include "jrm.milliseconds" $monitor.interval | int -}}
{{- if gt (include "jrm.milliseconds" $monitor.scrapeTimeout | int) $interval -}}
{{- $problems = append $problems (printf "monitoring.serviceMonitor.scrapeTimeout is %s, longer than the interval, %s: Prometheus refuses that" $monitor.scrapeTimeout $monitor.interval) -}}
{{- end -}}
{{- if and (ne $scaling.kind "none") (gt $interval 30000) -}}
{{- $problems = append $problems (printf "monitoring.serviceMonitor.interval is %s: autoscaling looks at 2 minutes and needs several scrapes in that time, so set 30s at most" $monitor.interval) -}}
{{- end -}}
{{- end -}}

{{- $own := splitList " " "POD_NAME FOLDER PART EXPECT REPO REVISION HF_HUB_OFFLINE HF_ENDPOINT HF_TOKEN REMOTE HOME SOURCE" -}}
{{- range $checkpoint.extraEnv -}}
{{- if or (has .name $own) (hasKey $checkpoint.objectStore.env .name) -}}
{{- $problems = append $problems (printf "checkpoint.extraEnv has %s, which the chart sets itself from other values of checkpoint" .name) -}}
{{- end -}}
{{- end -}}
{{- $problems = concat $problems (include "jrm.validate.mounts" (dict "name" "checkpoint" "mounts" $checkpoint.extraVolumeMounts) | fromYamlArray) -}}

{{- if and $values.ingress.enabled (not $values.ingress.hosts) -}}
{{- $problems = append $problems "ingress.enabled is true: ingress.hosts is empty" -}}
{{- end -}}
{{- if and $values.gateway.enabled (not $values.gateway.parentRefs) -}}
{{- $problems = append $problems "gateway.enabled is true: gateway.parentRefs is empty" -}}
{{- end -}}

{{- $loading := mul (int $values.probes.startup.periodSeconds) (int $values.probes.startup.failureThreshold) -}}
{{- if le (int $values.progressDeadlineSeconds) (int $loading) -}}
{{- $problems = append $problems (printf "progressDeadlineSeconds is %d, but probes.startup lets a pod load for %d s: a healthy rollout would count as failed" (int $values.progressDeadlineSeconds) (int $loading)) -}}
{{- end -}}

{{- range $name := list "score" "explain" -}}
{{- if (index $values $name).enabled -}}
{{- $problems = concat $problems (include "jrm.validate.role" (dict "root" $ "role" $name) | fromYamlArray) -}}
{{- end -}}
{{- end -}}

{{- if $problems -}}
{{- fail (printf "\n\nThese values contradict each other:\n  - %s\n" (join "\n  - " $problems)) -}}
{{- end -}}
{{- end -}}

{{/* The problems of a role as a YAML list, from (dict "root" $ "role" "score"). */}}
{{- define "jrm.validate.role" -}}
{{- $problems := list -}}
{{- $name := .role -}}
{{- $values := .root.Values -}}
{{- $role := index $values $name -}}

{{- if and (eq (toString $role.strategy.maxSurge | trimSuffix "%" | int) 0) (eq (toString $role.strategy.maxUnavailable | trimSuffix "%" | int) 0) -}}
{{- $problems = append $problems (printf "%s.strategy: maxSurge and maxUnavailable are both 0, so no rollout could begin" $name) -}}
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
{{- $problems = append $problems (printf "%s.podDisruptionBudget.minAvailable is %v, but there may be only %d pods: no node could ever be drained" $name $budget.minAvailable $fewest) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- $settings := mergeOverwrite (deepCopy $values.settings) $role.settings -}}
{{- $queue := int64 (default 4096 $settings.max_queue) -}}
{{- $candidates := int64 (default 1024 $settings.max_candidates) -}}
{{- if gt $candidates $queue -}}
{{- $problems = append $problems (printf "%s pods could never admit a request of max_candidates, %d: max_queue is %d. Give both in settings: {max_queue: %d, max_candidates: %d}" $name $candidates $queue $queue $queue) -}}
{{- end -}}
{{- $bodies := int64 (default 1073741824 $settings.max_bodies_bytes) -}}
{{- if lt (include "jrm.bytes" $values.volumes.tmp | int64) $bodies -}}
{{- $problems = append $problems (printf "volumes.tmp is %s, but %s pods keep uploads of up to %d bytes there: raise it, or lower settings.max_bodies_bytes" $values.volumes.tmp $name $bodies) -}}
{{- end -}}
{{- if not (regexMatch "^(https?://([^][@/?#:\\s]+|\\[[0-9a-fA-F:.]+\\])(:[1-9][0-9]{0,4})?(/[^?#\\s]*)?)?$" (default "" $settings.otlp_endpoint)) -}}
{{- $problems = append $problems (printf "the otlp_endpoint of %s pods must be http://HOST:PORT or https://…; put credentials into OTEL_EXPORTER_OTLP_HEADERS with %s.extraEnv" $name $name) -}}
{{- end -}}

{{- $taken := list "checkpoint" "keys" "tmp" "cache" "shm" -}}
{{- range concat $values.checkpoint.extraVolumes $role.extraVolumes -}}
{{- if has .name $taken -}}
{{- $problems = append $problems (printf "%s pods would have two volumes named %s: give the one of extraVolumes another name" $name .name) -}}
{{- end -}}
{{- $taken = append $taken .name -}}
{{- end -}}
{{- $problems = concat $problems (include "jrm.validate.mounts" (dict "name" $name "mounts" $role.extraVolumeMounts) | fromYamlArray) -}}

{{- if and (gt (int $role.gpus) 1) (contains "/mig-" $values.gpu.resource) -}}
{{- $problems = append $problems (printf "%s.gpus is %d, but gpu.resource is %s: a process sees one MIG slice only. Set %s.gpus to 1, and %s.replicas to the number of slices" $name (int $role.gpus) $values.gpu.resource $name $name) -}}
{{- end -}}

{{- range $part := list "requests" "limits" -}}
{{- if hasKey (default dict (get $role.resources $part)) $values.gpu.resource -}}
{{- $problems = append $problems (printf "%s.resources.%s has %s: set %s.gpus instead" $name $part $values.gpu.resource $name) -}}
{{- end -}}
{{- end -}}

{{- range $role.extraEnv -}}
{{- if hasPrefix "JRM_" .name -}}
{{- $problems = append $problems (printf "%s.extraEnv has %s: it belongs in %s.settings" $name .name $name) -}}
{{- end -}}
{{- end -}}

{{- if and (eq $name "explain") (eq (toString (default $values.settings.backend $role.settings.backend)) "fake") -}}
{{- $problems = append $problems "explain.enabled is true, but the backend is fake and has no language head" -}}
{{- end -}}
{{- if and (eq $name "explain") (eq (int $role.gpus) 0) (not (or $values.image.tag $values.image.digest)) -}}
{{- $problems = append $problems "explain.gpus is 0, but the -cpu image has no vLLM: set explain.gpus to 1, or image.tag to an image that has it" -}}
{{- end -}}
{{- if ge (int $role.minReadySeconds) (int $values.progressDeadlineSeconds) -}}
{{- $problems = append $problems (printf "%s.minReadySeconds must be less than progressDeadlineSeconds" $name) -}}
{{- end -}}
{{- toYaml $problems -}}
{{- end -}}

{{/* Problems with mounts that would hide the chart's own, as a YAML list, from (dict "name" "score" "mounts" (list …)). */}}
{{- define "jrm.validate.mounts" -}}
{{- $problems := list -}}
{{- $name := .name -}}
{{- range .mounts -}}
{{- if has (trimSuffix "/" .mountPath) (list "/checkpoint" "/store" "/etc/jrm/keys" "/tmp" "/cache" "/dev/shm") -}}
{{- $problems = append $problems (printf "%s.extraVolumeMounts has %s, where the chart mounts a volume of its own: choose another folder, or one below it" $name .mountPath) -}}
{{- end -}}
{{- end -}}
{{- toYaml $problems -}}
{{- end -}}
