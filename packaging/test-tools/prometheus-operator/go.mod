module caisson.dev/test-tools/prometheus-operator

go 1.23.0

require github.com/prometheus-operator/prometheus-operator v0.85.0
