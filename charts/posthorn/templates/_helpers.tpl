{{- define "posthorn.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end -}}

{{- /* Labels of everything that the chart makes; the argument is a dict of root and component. */ -}}
{{- define "posthorn.labels" -}}
app.kubernetes.io/name: posthorn
app.kubernetes.io/component: {{ .component }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
helm.sh/chart: {{ .root.Chart.Name }}-{{ .root.Chart.Version | replace "+" "_" }}
{{- end -}}

{{- /* Labels that select the controller's pods. The NetworkPolicies that the controller makes for
delivery pods name the same two. */ -}}
{{- define "posthorn.controllerSelector" -}}
app.kubernetes.io/name: posthorn
app.kubernetes.io/component: controller
{{- end -}}

{{- /* The default pool's spec as JSON: as in the values, and for `helm test` a rule that lets Webhooks
of the release's namespace call Services of that namespace. */ -}}
{{- define "posthorn.defaultPool" -}}
{{- $spec := deepCopy .Values.defaultPool.spec -}}
{{- if .Values.test.enabled -}}
{{- $egress := get $spec "egress" | default dict -}}
{{- $rule := dict "namespaces" (list .Release.Namespace) -}}
{{- $_ := set $egress "allow" (append (get $egress "allow" | default list) $rule) -}}
{{- $_ := set $spec "egress" $egress -}}
{{- end -}}
{{- toJson $spec -}}
{{- end -}}

{{- /* Pod Security "restricted", and a root file system that cannot be written. */ -}}
{{- define "posthorn.podSecurityContext" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile:
  type: RuntimeDefault
{{- end -}}
{{- define "posthorn.containerSecurityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{- /* The controller reads the Secrets that Webhooks name, makes their signing keys and deletes those 24 hours
after their Webhook. Which Secrets it may write is held by the ValidatingAdmissionPolicy
posthorn-made-secrets: RBAC cannot say it. */ -}}
{{- define "posthorn.controllerSecretRules" -}}
- apiGroups: [""]
  resources: [secrets]
  verbs: [get, create, delete]
{{- end -}}

{{- define "posthorn.deliverySecretRules" -}}
- apiGroups: [""]
  resources: [secrets]
  verbs: [get]
{{- end -}}
