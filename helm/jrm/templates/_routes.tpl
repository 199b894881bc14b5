{{/*
The routes for callers outside the cluster, as YAML: paths, each with the role that answers. Health and metrics are not
among them, since they need no API key. "prefix" also matches the paths below. Takes root, and whether the page is
routed.
*/}}
{{- define "jrm.routes" -}}
{{- $page := .page }}
{{- with .root }}
{{- if .Values.score.enabled }}
- {path: /score, role: score}
- {path: /v1/score, role: score}
{{- end }}
{{- if .Values.explain.enabled }}
- {path: /explain, role: explain}
- {path: /v1/explain, role: explain}
{{- end }}
- {path: /v1/info, role: {{ ternary "score" "explain" .Values.score.enabled }}}
- {path: /v1/models, role: {{ ternary "score" "explain" .Values.score.enabled }}}
{{- if $page }}
- {path: /, role: {{ ternary "score" "explain" .Values.score.enabled }}}
- {path: /page, prefix: true, role: {{ ternary "score" "explain" .Values.score.enabled }}}
{{- if .Values.score.enabled }}
- {path: /v1/watch, prefix: true, role: score}
{{- end }}
{{- end }}
{{- end }}
{{- end -}}
