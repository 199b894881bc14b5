{{/* The pod template of a role, from (dict "root" $ "role" "score"). */}}
{{- define "jrm.podTemplate" -}}
{{- $root := .root -}}
{{- $values := $root.Values -}}
{{- $name := .role -}}
{{- $role := index $values $name -}}
{{- $gpus := int $role.gpus -}}
{{- $image := include "jrm.image" (dict "root" $root "gpus" $gpus) -}}
{{- $selector := dict "root" $root "component" $name -}}
metadata:
  # Without the chart's version: a new chart alone restarts no pod, and loads no weights again.
  labels: {{- merge (include "jrm.selectorLabels" $selector | fromYaml) $role.podLabels | toYaml | nindent 4 }}
  {{- $checksum := dict "checksum/config" (include "jrm.environment" . | sha256sum) }}
  annotations: {{- merge $checksum $role.podAnnotations | toYaml | nindent 4 }}
spec:
  serviceAccountName: {{ include "jrm.serviceAccountName" $root }}
  automountServiceAccountToken: false
  # A Service called "jrm" would set JRM_PORT to a URL.
  enableServiceLinks: false
  terminationGracePeriodSeconds: {{ include "jrm.terminationGracePeriodSeconds" $root }}
  {{- with include "jrm.imagePullSecrets" $root }}
  {{- . | nindent 2 }}
  {{- end }}
  securityContext: {{- toYaml $values.podSecurityContext | nindent 4 }}
  {{- with $role.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
  {{- with $role.runtimeClassName }}
  runtimeClassName: {{ . }}
  {{- end }}
  {{- with $role.nodeSelector }}
  nodeSelector: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with include "jrm.tolerations" . | fromYamlArray }}
  tolerations: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $role.affinity }}
  affinity: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- $spread := list }}
  {{- range $role.topologySpreadConstraints }}
  {{- $own := dict "labelSelector" (dict "matchLabels" (include "jrm.selectorLabels" $selector | fromYaml)) }}
  {{- $spread = append $spread (ternary . (merge $own .) (hasKey . "labelSelector")) }}
  {{- end }}
  {{- with $spread }}
  topologySpreadConstraints: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with include "jrm.checkpoint.initContainers" (dict "root" $root "role" $name "image" $image) | trim }}
  initContainers:
    {{- . | nindent 4 }}
  {{- end }}
  containers:
    - name: jrm
      image: {{ $image }}
      imagePullPolicy: {{ $values.image.pullPolicy }}
      args: [serve]
      envFrom:
        - configMapRef:
            name: {{ include "jrm.fullname" $root }}-{{ $name }}
      {{- with include "jrm.containerEnvironment" . | trim }}
      env:
        {{- . | nindent 8 }}
      {{- end }}
      ports:
        - name: http
          containerPort: 8000
          protocol: TCP
      startupProbe: {{- include "jrm.probe" (dict "path" "/health/startup" "probe" $values.probes.startup) | nindent 8 }}
      livenessProbe: {{- include "jrm.probe" (dict "path" "/health/live" "probe" $values.probes.liveness) | nindent 8 }}
      readinessProbe: {{- include "jrm.probe" (dict "path" "/health/ready" "probe" $values.probes.readiness) | nindent 8 }}
      lifecycle:
        preStop:
          exec:
            command: [sleep, {{ int $values.shutdown.preStopSeconds | quote }}]
      securityContext: {{- toYaml $values.containerSecurityContext | nindent 8 }}
      resources: {{- include "jrm.resources" . | nindent 8 }}
      volumeMounts:
        {{- with include "jrm.checkpoint.mount" $root | trim }}
        {{- . | nindent 8 }}
        {{- end }}
        {{- if $values.apiKeys.existingSecret }}
        # The whole folder: a file mounted with subPath is never updated, and the server picks up new keys.
        - name: keys
          mountPath: /etc/jrm/keys
          readOnly: true
        {{- end }}
        - name: tmp
          mountPath: /tmp
        - name: cache
          mountPath: /cache
        - name: shm
          mountPath: /dev/shm
        {{- with $role.extraVolumeMounts }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
  volumes:
    {{- with include "jrm.checkpoint.volume" $root | trim }}
    {{- . | nindent 4 }}
    {{- end }}
    {{- with $values.apiKeys.existingSecret }}
    - name: keys
      secret:
        secretName: {{ . }}
        defaultMode: 0440
    {{- end }}
    - name: tmp
      emptyDir:
        sizeLimit: {{ $values.volumes.tmp }}
    - name: cache
      emptyDir:
        sizeLimit: {{ $values.volumes.cache }}
    - name: shm
      emptyDir:
        medium: Memory
        sizeLimit: {{ $values.volumes.shm }}
    {{- with concat $values.checkpoint.extraVolumes $role.extraVolumes }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
{{- end -}}

{{/* The tolerations of a role's pods, as a YAML list, from (dict "root" $ "role" "score"). */}}
{{- define "jrm.tolerations" -}}
{{- $role := index .root.Values .role -}}
{{- $tolerations := $role.tolerations -}}
{{- $taint := .root.Values.gpu.taint -}}
{{- if and (gt (int $role.gpus) 0) $taint -}}
{{- $tolerations = append $tolerations (dict "key" $taint "operator" "Exists" "effect" "NoSchedule") -}}
{{- end -}}
{{- toYaml $tolerations -}}
{{- end -}}

{{/* The termination grace period: preStop, the server's own grace period, and 5 s to exit. */}}
{{- define "jrm.terminationGracePeriodSeconds" -}}
{{- $shutdown := .Values.shutdown -}}
{{- add (int $shutdown.preStopSeconds) (ceil $shutdown.graceSeconds | int) 5 -}}
{{- end -}}

{{- define "jrm.probe" -}}
httpGet:
  path: {{ .path }}
  port: http
{{- range $name, $value := .probe }}
{{ $name }}: {{ int $value }}
{{- end }}
{{- end -}}

{{/* The resources of a role's container. Its GPUs cannot be shared, so the limit equals the request. */}}
{{- define "jrm.resources" -}}
{{- $role := index .root.Values .role -}}
{{- $resources := deepCopy $role.resources -}}
{{- if gt (int $role.gpus) 0 -}}
{{- range $part := list "requests" "limits" -}}
{{- $quantities := merge (dict $.root.Values.gpu.resource (int $role.gpus)) (default dict (get $resources $part)) -}}
{{- $_ := set $resources $part $quantities -}}
{{- end -}}
{{- end -}}
{{- toYaml $resources -}}
{{- end -}}
