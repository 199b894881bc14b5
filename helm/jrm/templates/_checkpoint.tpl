{{/* "true" for a checkpoint that an init container brings into a volume of the chart, else nothing. */}}
{{- define "jrm.checkpoint.fetched" -}}
{{- $checkpoint := .Values.checkpoint -}}
{{- if or (has $checkpoint.source (list "hub" "objectStore")) (and (eq $checkpoint.source "image") (eq $checkpoint.image.mount "copy")) -}}
true
{{- end -}}
{{- end -}}

{{/* Its folder in that volume, named after where it comes from: a volume can keep several. */}}
{{- define "jrm.checkpoint.folder" -}}
{{- $checkpoint := .Values.checkpoint -}}
{{- $from := "" -}}
{{- if eq $checkpoint.source "hub" -}}
{{- $from = printf "%s/%s@%s" $checkpoint.hub.endpoint $checkpoint.hub.repo $checkpoint.hub.revision -}}
{{- else if eq $checkpoint.source "objectStore" -}}
{{- $from = $checkpoint.objectStore.remote -}}
{{- else -}}
{{- $from = printf "%s:%s" $checkpoint.image.reference $checkpoint.image.path -}}
{{- end -}}
{{- printf "%s-%s" (lower $checkpoint.source) ($from | sha256sum | trunc 16) -}}
{{- end -}}

{{/* The volume that the checkpoint is in; nothing for the bundled one. */}}
{{- define "jrm.checkpoint.volume" -}}
{{- $checkpoint := .Values.checkpoint -}}
{{- if include "jrm.checkpoint.fetched" . }}
- name: checkpoint
{{- if $checkpoint.store.claimName }}
  persistentVolumeClaim:
    claimName: {{ $checkpoint.store.claimName }}
{{- else }}
  emptyDir:
    sizeLimit: {{ $checkpoint.store.sizeLimit }}
{{- end }}
{{- else if eq $checkpoint.source "pvc" }}
- name: checkpoint
  persistentVolumeClaim:
    claimName: {{ $checkpoint.pvc.claimName }}
    readOnly: {{ $checkpoint.pvc.readOnly }}
{{- else if eq $checkpoint.source "image" }}
- name: checkpoint
  image:
    reference: {{ $checkpoint.image.reference }}
    pullPolicy: {{ $checkpoint.image.pullPolicy }}
{{- end }}
{{- end -}}

{{/* The checkpoint's mount, for the server and for `jrm inspect`; nothing for the bundled one. */}}
{{- define "jrm.checkpoint.mount" -}}
{{- $checkpoint := .Values.checkpoint -}}
{{- if ne $checkpoint.source "bundled" }}
{{- $folder := "" -}}
{{- if include "jrm.checkpoint.fetched" . -}}
{{- $folder = include "jrm.checkpoint.folder" . -}}
{{- else if eq $checkpoint.source "pvc" -}}
{{- $folder = $checkpoint.pvc.subPath -}}
{{- else -}}
{{- $folder = trimAll "/" $checkpoint.image.path -}}
{{- end }}
- name: checkpoint
  mountPath: /checkpoint
{{- with $folder }}
  subPath: {{ . | quote }}
{{- end }}
  readOnly: true
{{- end }}
{{- end -}}

{{/*
The init containers, from (dict "root" $ "role" "score" "image" "jrm-serve:…"). A checkpoint is fetched into a folder of
this pod's own, inspected, and only then renamed to the folder that is served: neither an interrupted download nor one
that another pod is still making is ever served.
*/}}
{{- define "jrm.checkpoint.initContainers" -}}
{{- $root := .root -}}
{{- $checkpoint := $root.Values.checkpoint -}}
{{- $settings := mergeOverwrite (deepCopy $root.Values.settings) (index $root.Values .role).settings -}}
{{- /* The server's own permission: a checkpoint that it may serve must not be refused by `jrm inspect`. */ -}}
{{- $inspectEnv := list -}}
{{- if $settings.allow_pipeline_drift -}}
{{- $inspectEnv = append $inspectEnv (dict "name" "JRM_ALLOW_PIPELINE_DRIFT" "value" "true") -}}
{{- end -}}
{{- $inspectEnv = concat $inspectEnv $checkpoint.extraEnv -}}
{{- if include "jrm.checkpoint.fetched" $root }}
- name: fetch
{{- if eq $checkpoint.source "hub" }}
  image: {{ .image }}
  imagePullPolicy: {{ $root.Values.image.pullPolicy }}
{{- else if eq $checkpoint.source "objectStore" }}
  image: {{ $checkpoint.objectStore.image }}
{{- else }}
  image: {{ $checkpoint.image.reference }}
  imagePullPolicy: {{ $checkpoint.image.pullPolicy }}
{{- end }}
  command: [sh, -ec]
  args:
    - |
      test ! -d "$FOLDER" || exit 0
{{- if $checkpoint.store.claimName }}
      # Leftovers of pods that were killed while they fetched, two days ago or earlier.
      find "${FOLDER%/*}" -maxdepth 1 -name '*.part-*' -mmin +2880 -exec rm -rf {} + || true
{{- end }}
{{- if eq $checkpoint.source "hub" }}
      exec hf download "$REPO" --revision "$REVISION" --local-dir "$PART"
{{- else if eq $checkpoint.source "objectStore" }}
      exec rclone copy --stats-one-line --stats 30s --stats-log-level NOTICE "$REMOTE" "$PART"
{{- else }}
      rm -rf "$PART"
      mkdir "$PART"
      exec cp -R "$SOURCE/." "$PART"
{{- end }}
  env:
    {{- include "jrm.checkpoint.folders" $root | nindent 4 }}
{{- if eq $checkpoint.source "hub" }}
    - name: REPO
      value: {{ $checkpoint.hub.repo | quote }}
    - name: REVISION
      value: {{ $checkpoint.hub.revision | quote }}
    - name: HF_HUB_OFFLINE
      value: "0"
{{- with $checkpoint.hub.endpoint }}
    - name: HF_ENDPOINT
      value: {{ . | quote }}
{{- end }}
{{- if $checkpoint.hub.tokenSecret.name }}
    - name: HF_TOKEN
      valueFrom:
        secretKeyRef:
          name: {{ $checkpoint.hub.tokenSecret.name }}
          key: {{ $checkpoint.hub.tokenSecret.key }}
{{- end }}
{{- else if eq $checkpoint.source "objectStore" }}
    - name: REMOTE
      value: {{ $checkpoint.objectStore.remote | quote }}
    - name: HOME
      value: /tmp
{{- range $name, $value := $checkpoint.objectStore.env }}
    - name: {{ $name }}
      value: {{ $value | quote }}
{{- end }}
{{- else }}
    - name: SOURCE
      value: {{ $checkpoint.image.path | trimSuffix "/" | quote }}
{{- end }}
{{- with $checkpoint.extraEnv }}
    {{- toYaml . | nindent 4 }}
{{- end }}
{{- with and (eq $checkpoint.source "objectStore") $checkpoint.objectStore.secretName }}
  envFrom:
    - secretRef:
        name: {{ . }}
{{- end }}
  securityContext: {{- toYaml $root.Values.containerSecurityContext | nindent 4 }}
  resources: {{- toYaml $checkpoint.resources | nindent 4 }}
  volumeMounts:
    - name: checkpoint
      mountPath: /store
    - name: tmp
      mountPath: /tmp
    - name: cache
      mountPath: /cache
{{- with $checkpoint.extraVolumeMounts }}
    {{- toYaml . | nindent 4 }}
{{- end }}
- name: inspect
  image: {{ .image }}
  imagePullPolicy: {{ $root.Values.image.pullPolicy }}
  command: [sh, -ec]
  args:
    - |
      checkpoint=$FOLDER
      test -d "$FOLDER" || checkpoint=$PART
      jrm inspect ${EXPECT:+--expect "$EXPECT"} "$checkpoint"
      test "$checkpoint" = "$PART" || exit 0
      # Another pod may have fetched the same checkpoint into a shared volume meanwhile.
      mv -T "$PART" "$FOLDER" || { test -d "$FOLDER" && rm -rf "$PART"; }
  env:
    {{- include "jrm.checkpoint.folders" $root | nindent 4 }}
    - name: EXPECT
      value: {{ $checkpoint.fingerprint | quote }}
{{- with $inspectEnv }}
    {{- toYaml . | nindent 4 }}
{{- end }}
  securityContext: {{- toYaml $root.Values.containerSecurityContext | nindent 4 }}
  resources: {{- toYaml $checkpoint.resources | nindent 4 }}
  volumeMounts:
    - name: checkpoint
      mountPath: /store
    - name: tmp
      mountPath: /tmp
    - name: cache
      mountPath: /cache
{{- with $checkpoint.extraVolumeMounts }}
    {{- toYaml . | nindent 4 }}
{{- end }}
{{- else if and $checkpoint.fingerprint (ne $checkpoint.source "bundled") }}
- name: inspect
  image: {{ .image }}
  imagePullPolicy: {{ $root.Values.image.pullPolicy }}
  args: [inspect, --expect, {{ $checkpoint.fingerprint | quote }}, /checkpoint]
{{- with $inspectEnv }}
  env:
    {{- toYaml . | nindent 4 }}
{{- end }}
  securityContext: {{- toYaml $root.Values.containerSecurityContext | nindent 4 }}
  resources: {{- toYaml $checkpoint.resources | nindent 4 }}
  volumeMounts:
    {{- include "jrm.checkpoint.mount" $root | trim | nindent 4 }}
    - name: tmp
      mountPath: /tmp
    - name: cache
      mountPath: /cache
{{- with $checkpoint.extraVolumeMounts }}
    {{- toYaml . | nindent 4 }}
{{- end }}
{{- end }}
{{- end -}}

{{/* The folder of a checkpoint while it is fetched (PART), and once it has been inspected (FOLDER). */}}
{{- define "jrm.checkpoint.folders" -}}
- name: POD_NAME
  valueFrom:
    fieldRef:
      fieldPath: metadata.name
- name: FOLDER
  value: /store/{{ include "jrm.checkpoint.folder" . }}
- name: PART
  value: $(FOLDER).part-$(POD_NAME)
{{- end -}}
