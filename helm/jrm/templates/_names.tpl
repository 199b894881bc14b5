{{/*
The prefix of the names of all objects. The longest suffix is "-explain-headless", of 17 characters, and the name of a
Service may have 63. A longer name is cut, and gets a hash so that two long names that begin alike stay distinct.
*/}}
{{- define "jrm.fullname" -}}
{{- $full := ternary .Release.Name (printf "%s-%s" .Release.Name .Chart.Name) (contains .Chart.Name .Release.Name) -}}
{{- $full = default $full .Values.fullnameOverride -}}
{{- if gt (len $full) 46 -}}
{{- $full = printf "%s-%s" ($full | trunc 37 | trimSuffix "-") ($full | sha256sum | trunc 8) -}}
{{- end -}}
{{- $full -}}
{{- end -}}

{{- define "jrm.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "jrm.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{/*
What a selector matches, from (dict "root" $ "component" "score"). Never the version: a selector of a Deployment cannot
be changed.
*/}}
{{- define "jrm.selectorLabels" -}}
app.kubernetes.io/name: {{ .root.Chart.Name }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
{{- with .component }}
app.kubernetes.io/component: {{ . }}
{{- end }}
{{- end -}}

{{/* The labels of an object, from (dict "root" $ "component" "score"); no component for an object of all roles. */}}
{{- define "jrm.labels" -}}
{{ include "jrm.selectorLabels" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/part-of: jrm-serve
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{- end -}}

{{/* The service's image, from (dict "root" $ "gpus" 1): a digest comes before a tag, a tag before the chart's version. */}}
{{- define "jrm.image" -}}
{{- $image := .root.Values.image -}}
{{- if $image.digest -}}
{{- printf "%s@%s" $image.repository $image.digest -}}
{{- else -}}
{{- $flavour := ternary "gpu" "cpu" (gt (int .gpus) 0) -}}
{{- printf "%s:%s" $image.repository (default (printf "%s-%s" .root.Chart.AppVersion $flavour) $image.tag) -}}
{{- end -}}
{{- end -}}

{{- define "jrm.imagePullSecrets" -}}
{{- with .Values.image.pullSecrets -}}
imagePullSecrets:
{{- range . }}
  - name: {{ . }}
{{- end }}
{{- end }}
{{- end -}}

{{/* Label matchers for all queries of Prometheus, so that releases neither alert nor scale for each other. */}}
{{- define "jrm.series" -}}
{{- printf "namespace=%q,job=%q" .Release.Namespace (include "jrm.fullname" .) -}}
{{- end -}}

{{/* One of the autoscaling queries as YAML with a "metricsQuery", from (dict "root" $ "metric" "jrm_devices_busy"). */}}
{{- define "jrm.query" -}}
{{- $metric := .metric -}}
{{- range (.root.Files.Get "files/prometheus-adapter.yaml" | fromYaml).rules.external -}}
{{- if eq .name.as $metric -}}
{{- .metricsQuery | replace "<<.LabelMatchers>>" (include "jrm.series" $.root) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* "true" if `helm test` has a pod, else nothing: with API keys, only if the test has one. */}}
{{- define "jrm.tested" -}}
{{- if or (not .Values.apiKeys.existingSecret) .Values.test.apiKeySecret.name -}}
true
{{- end -}}
{{- end -}}
