// Checks that dashboards are what Grafana's own types of a dashboard allow: no unknown field, no missing one, no wrong type.
// What belongs to a kind of panel (its options and its field configuration) is checked by the types of that kind.
package main

import (
	"fmt"
	"os"

	"github.com/grafana/grafana-foundation-sdk/go/cog/plugins"
	"github.com/grafana/grafana-foundation-sdk/go/dashboard"
)

func main() {
	plugins.RegisterDefaultPlugins()
	failed := false
	for _, file := range os.Args[1:] {
		if err := validate(file); err != nil {
			fmt.Printf("%s: %v\n", file, err)
			failed = true
		}
	}
	if failed {
		os.Exit(1)
	}
}

func validate(file string) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	var parsed dashboard.Dashboard
	// It returns its list of errors as an error, also when the list is empty.
	if err := parsed.UnmarshalJSONStrict(text); err != nil && err.Error() != "" {
		return err
	}
	return parsed.Validate()
}
