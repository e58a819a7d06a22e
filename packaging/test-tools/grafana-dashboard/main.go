// Program grafana-dashboard checks a dashboard against Grafana's schema: it reads the JSON from
// standard input and fails on a field that the schema does not have or a value that it does not
// allow.
package main

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/grafana/grafana-foundation-sdk/go/cog"
	"github.com/grafana/grafana-foundation-sdk/go/dashboard"
	"github.com/grafana/grafana-foundation-sdk/go/prometheus"
	"github.com/grafana/grafana-foundation-sdk/go/stat"
	"github.com/grafana/grafana-foundation-sdk/go/timeseries"
)

func check() error {
	runtime := cog.NewRuntime()
	runtime.RegisterPanelcfgVariant(stat.VariantConfig())
	runtime.RegisterPanelcfgVariant(timeseries.VariantConfig())
	runtime.RegisterDataqueryVariant(prometheus.VariantConfig())
	text, err := io.ReadAll(os.Stdin)
	if err != nil {
		return err
	}
	var board dashboard.Dashboard
	err = board.UnmarshalJSONStrict(text)
	// Where nothing is wrong, the error is an empty list, not nil.
	var wrong cog.BuildErrors
	if err != nil && (!errors.As(err, &wrong) || len(wrong) > 0) {
		return err
	}
	return board.Validate()
}

func main() {
	if err := check(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
