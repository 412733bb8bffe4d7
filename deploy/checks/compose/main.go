// Reads a Compose file as Docker Compose does (the specification's own library: its JSON schema, interpolation, merging
// and the checks between services, volumes and configs) and prints the project as JSON; what is wrong goes to standard
// error, with exit code 1.
//
//	compose FILE [PROFILE ...]
package main

import (
	"context"
	"fmt"
	"os"

	"github.com/compose-spec/compose-go/v2/cli"
)

func main() {
	if len(os.Args) < 2 {
		fmt.Fprintln(os.Stderr, "compose: name a Compose file, and profiles after it")
		os.Exit(2)
	}
	options, err := cli.NewProjectOptions(
		os.Args[1:2],
		cli.WithOsEnv,
		cli.WithProfiles(os.Args[2:]),
		cli.WithResolvedPaths(true),
		cli.WithInterpolation(true),
		cli.WithNormalization(true),
		cli.WithConsistency(true),
	)
	if err == nil {
		var text []byte
		text, err = project(options)
		if err == nil {
			_, err = os.Stdout.Write(text)
		}
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "compose: %v\n", err)
		os.Exit(1)
	}
}

func project(options *cli.ProjectOptions) ([]byte, error) {
	loaded, err := options.LoadProject(context.Background())
	if err != nil {
		return nil, err
	}
	return loaded.MarshalJSON()
}
