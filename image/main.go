// Command image makes Posthorn's container image without a container engine.
//
// The image is one layer on nothing: the static binary and the few files that it reads. The archive has
// Docker's format, which `kind load image-archive`, `ctr images import` and `docker load` take. The same
// inputs make the same archive, byte for byte: times are the epoch, owners are numbers, the order is fixed.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
)

// options are what the image is made of.
type options struct {
	binary         string
	name           string
	out            string
	architecture   string
	caCertificates string
	version        string
	revision       string
}

const (
	exitDone   = 0
	exitFailed = 1
	exitUsage  = 2
)

func main() {
	os.Exit(run(os.Args[1:]))
}

func run(arguments []string) int {
	var wanted options
	flags := flag.NewFlagSet("image", flag.ContinueOnError)
	flags.StringVar(&wanted.binary, "binary", "", "path of the static posthorn binary (required)")
	flags.StringVar(&wanted.name, "name", "posthorn:dev", "name and tag of the image")
	flags.StringVar(&wanted.out, "out", "", "path of the archive to write (required)")
	flags.StringVar(&wanted.architecture, "arch", "amd64", "architecture of the binary: amd64 or arm64")
	flags.StringVar(&wanted.caCertificates, "ca-certificates", "/etc/ssl/certs/ca-certificates.crt",
		"file of the certificate authorities that Posthorn trusts unless told otherwise")
	flags.StringVar(&wanted.version, "version", "", "version for the image's labels")
	flags.StringVar(&wanted.revision, "revision", "", "source revision for the image's labels")
	if err := flags.Parse(arguments); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return exitDone
		}
		return exitUsage
	}
	if wanted.binary == "" || wanted.out == "" || flags.NArg() > 0 {
		fmt.Fprintln(os.Stderr, "image: --binary and --out are required, and nothing but flags is taken")
		flags.Usage()
		return exitUsage
	}
	result, err := makeArchive(wanted)
	if err != nil {
		fmt.Fprintf(os.Stderr, "image: %v\n", err)
		return exitFailed
	}
	fmt.Fprintf(os.Stderr, "image: wrote %s as %s\n", wanted.name, wanted.out)
	fmt.Printf("digest=%s size=%d\n", result.digest, result.archiveBytes)
	return exitDone
}
