// An S3 server over a folder: the Versity gateway with its POSIX backend, and none of its others.
//
// Usage: s3-server ADDRESS OBJECTS ATTRIBUTES, with ROOT_ACCESS_KEY, ROOT_SECRET_KEY and S3_REGION in the environment.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/versity/versitygw/backend/meta"
	"github.com/versity/versitygw/backend/posix"
	"github.com/versity/versitygw/embedgw"
)

func main() {
	if len(os.Args) != 4 {
		fmt.Fprintln(os.Stderr, "usage: s3-server ADDRESS OBJECTS ATTRIBUTES")
		os.Exit(2)
	}
	if err := serve(os.Args[1], os.Args[2], os.Args[3]); err != nil && !errors.Is(err, context.Canceled) {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func serve(address, objects, attributes string) error {
	until, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	// Attributes in a folder of their own: not every file system has room for them beside a file.
	kept, err := meta.NewSideCar(attributes)
	if err != nil {
		return err
	}
	files, err := posix.New(objects, kept, posix.PosixOpts{SideCarDir: attributes, Concurrency: 1000})
	if err != nil {
		return err
	}
	return embedgw.RunVersityGW(until, files, &embedgw.Config{
		RootUserAccess:    os.Getenv("ROOT_ACCESS_KEY"),
		RootUserSecret:    os.Getenv("ROOT_SECRET_KEY"),
		Region:            os.Getenv("S3_REGION"),
		Ports:             []string{address},
		MaxConnections:    10000,
		MaxRequests:       10000,
		MultipartMaxParts: 10000,
		KeepAlive:         true,
		Quiet:             true,
	})
}
