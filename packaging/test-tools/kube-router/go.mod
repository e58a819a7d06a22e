module caisson.dev/test-tools/kube-router

go 1.23.0

require github.com/cloudnativelabs/kube-router/v2 v2.1.0
