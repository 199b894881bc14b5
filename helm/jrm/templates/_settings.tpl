{{/* A setting as the server reads it. Helm's numbers are floats, and 67108864 would come out as 6.7108864e+07. */}}
{{- define "jrm.setting" -}}
{{- if and (kindIs "float64" .) (eq (float64 (int64 .)) .) -}}
{{- int64 . -}}
{{- else -}}
{{- . -}}
{{- end -}}
{{- end -}}

{{/* The variables of a role's ConfigMap, from (dict "root" $ "role" "score"). Nothing secret is among them. */}}
{{- define "jrm.environment" -}}
{{- $root := .root -}}
{{- $role := index $root.Values .role -}}
{{- $environment := dict -}}
{{- range $name, $value := mergeOverwrite (deepCopy $root.Values.settings) $role.settings -}}
{{- if not (kindIs "invalid" $value) -}}
{{- $_ := set $environment (printf "JRM_%s" (upper $name)) (include "jrm.setting" $value) -}}
{{- end -}}
{{- end -}}
{{- $_ := set $environment "JRM_SERVE" .role -}}
{{- $_ := set $environment "JRM_HOST" $root.Values.host -}}
{{- $_ := set $environment "JRM_PORT" "8000" -}}
{{- $_ := set $environment "JRM_DEVICE" (include "jrm.devices" $role.gpus) -}}
{{- $_ := set $environment "JRM_GRACE_S" (include "jrm.setting" $root.Values.shutdown.graceSeconds) -}}
{{- if ne $root.Values.checkpoint.source "bundled" -}}
{{- $_ := set $environment "JRM_CHECKPOINT" "/checkpoint" -}}
{{- end -}}
{{- if $root.Values.apiKeys.existingSecret -}}
{{- $_ := set $environment "JRM_API_KEYS_FILE" (printf "/etc/jrm/keys/%s" $root.Values.apiKeys.key) -}}
{{- end -}}
{{- $redis := $root.Values.redis -}}
{{- if and (eq $redis.mode "internal") (not $redis.internal.existingSecret) -}}
{{- $_ := set $environment "JRM_REDIS_URL" (printf "redis://%s-redis:6379/0" (include "jrm.fullname" $root)) -}}
{{- else if and (eq $redis.mode "external") $redis.external.url -}}
{{- $_ := set $environment "JRM_REDIS_URL" $redis.external.url -}}
{{- end -}}
{{- toYaml $environment -}}
{{- end -}}

{{/* The server's setting `device` for a number of GPUs: cuda:0,cuda:1 */}}
{{- define "jrm.devices" -}}
{{- $devices := list -}}
{{- range $index := until (int .) -}}
{{- $devices = append $devices (printf "cuda:%d" $index) -}}
{{- end -}}
{{- default "cpu" (join "," $devices) -}}
{{- end -}}

{{/*
The environment variables of a role's container that are not in its ConfigMap, from (dict "root" $ "role" "score"):
those from secrets, and those that follow from the requested CPUs. The node has more CPUs than the pod, and Python counts
the node's.
*/}}
{{- define "jrm.containerEnvironment" -}}
{{- $root := .root -}}
{{- $role := index $root.Values .role -}}
{{- $redis := $root.Values.redis -}}
{{- $extra := list -}}
{{- range $role.extraEnv }}{{ $extra = append $extra .name }}{{ end -}}
{{- if dig "requests" "cpu" "" $role.resources -}}
{{- if not (or (hasKey $root.Values.settings "preprocess_threads") (hasKey $role.settings "preprocess_threads")) }}
- name: JRM_PREPROCESS_THREADS
  valueFrom:
    resourceFieldRef:
      containerName: jrm
      resource: requests.cpu
{{- end }}
{{- if and (eq .role "score") (eq (int $role.gpus) 0) (not (has "OMP_NUM_THREADS" $extra)) }}
- name: OMP_NUM_THREADS
  valueFrom:
    resourceFieldRef:
      containerName: jrm
      resource: requests.cpu
{{- end }}
{{- end }}
{{- if and (eq $redis.mode "internal") $redis.internal.existingSecret }}
- name: REDIS_PASSWORD
  valueFrom:
    secretKeyRef:
      name: {{ $redis.internal.existingSecret }}
      key: {{ $redis.internal.existingSecretKey }}
- name: JRM_REDIS_URL
  value: redis://:$(REDIS_PASSWORD)@{{ include "jrm.fullname" $root }}-redis:6379/0
{{- else if and (eq $redis.mode "external") $redis.external.existingSecret }}
- name: JRM_REDIS_URL
  valueFrom:
    secretKeyRef:
      name: {{ $redis.external.existingSecret }}
      key: {{ $redis.external.existingSecretKey }}
{{- end }}
{{- with $role.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end -}}
