package main

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// machines maps the architectures that the image can have to what the binary's header must say.
var machines = map[string]elf.Machine{
	"amd64": elf.EM_X86_64,
	"arm64": elf.EM_AARCH64,
}

// compressionLevel is fixed, since it is part of what makes the digest.
const compressionLevel = 9

// inputBytesMax bounds each input file; one that is larger is a mistake, such as a debug build.
const inputBytesMax = 512 << 20

// made is what came out.
type made struct {
	// digest is that of the image's manifest, which a registry would show.
	digest       v1.Hash
	archiveBytes int64
}

// makeArchive writes the image's archive, in one step: a failure leaves no half of one.
func makeArchive(wanted options) (made, error) {
	image, err := makeImage(wanted)
	if err != nil {
		return made{}, err
	}
	tag, err := name.NewTag(wanted.name)
	if err != nil {
		return made{}, fmt.Errorf("--name %q: %w", wanted.name, err)
	}
	digest, err := image.Digest()
	if err != nil {
		return made{}, fmt.Errorf("compute the digest of %s: %w", wanted.name, err)
	}
	size, err := writeArchive(wanted.out, tag, image)
	if err != nil {
		return made{}, fmt.Errorf("write the archive %s: %w", wanted.out, err)
	}
	return made{digest: digest, archiveBytes: size}, nil
}

func writeArchive(path string, tag name.Tag, image v1.Image) (int64, error) {
	file, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".new.*")
	if err != nil {
		return 0, err
	}
	defer os.Remove(file.Name()) // Of no effect once it has its name.
	err = tarball.Write(tag, image, file)
	info, statErr := file.Stat()
	if err = errors.Join(err, statErr, file.Close()); err != nil {
		return 0, err
	}
	const readableByAll = 0o644 // CreateTemp lets only the owner read; an archive is handed on.
	if err := os.Chmod(file.Name(), readableByAll); err != nil {
		return 0, err
	}
	return info.Size(), os.Rename(file.Name(), path)
}

// makeImage puts the layer and the configuration together.
func makeImage(wanted options) (v1.Image, error) {
	machine, known := machines[wanted.architecture]
	if !known {
		return nil, fmt.Errorf("--arch %q: want amd64 or arm64", wanted.architecture)
	}
	binary, err := readInput(wanted.binary)
	if err != nil {
		return nil, fmt.Errorf("read the binary: %w", err)
	}
	if err := checkStatic(binary, machine); err != nil {
		return nil, fmt.Errorf("the binary %s: %w", wanted.binary, err)
	}
	authorities, err := readInput(wanted.caCertificates)
	if err != nil {
		return nil, fmt.Errorf("read the certificate authorities (Debian's package is ca-certificates): %w", err)
	}
	content, err := layerContent(binary, authorities)
	if err != nil {
		return nil, fmt.Errorf("make the layer: %w", err)
	}
	open := func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(content)), nil }
	layer, err := tarball.LayerFromOpener(open, tarball.WithCompressionLevel(compressionLevel), tarball.WithCompressedCaching)
	if err != nil {
		return nil, fmt.Errorf("make the layer: %w", err)
	}
	epoch := v1.Time{Time: time.Unix(0, 0).UTC()}
	image, err := mutate.ConfigFile(empty.Image, configuration(wanted, epoch))
	if err != nil {
		return nil, fmt.Errorf("set the configuration: %w", err)
	}
	image, err = mutate.Append(image, mutate.Addendum{
		Layer:   layer,
		History: v1.History{Created: epoch, CreatedBy: "posthorn image"},
	})
	if err != nil {
		return nil, fmt.Errorf("add the layer: %w", err)
	}
	return image, nil
}

func configuration(wanted options, created v1.Time) *v1.ConfigFile {
	labels := map[string]string{
		"org.opencontainers.image.title":       "posthorn",
		"org.opencontainers.image.description": "Sends webhooks from Kubernetes",
		"org.opencontainers.image.licenses":    "Apache-2.0",
	}
	if wanted.version != "" {
		labels["org.opencontainers.image.version"] = wanted.version
	}
	if wanted.revision != "" {
		labels["org.opencontainers.image.revision"] = wanted.revision
	}
	return &v1.ConfigFile{
		Architecture: wanted.architecture,
		OS:           "linux",
		Created:      created,
		RootFS:       v1.RootFS{Type: "layers"},
		Config: v1.Config{
			User:       fmt.Sprintf("%d:%d", userID, userID),
			Entrypoint: []string{"/posthorn"},
			Env:        []string{"PATH=/"},
			WorkingDir: "/",
			Labels:     labels,
		},
	}
}

func readInput(path string) ([]byte, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	content, err := io.ReadAll(io.LimitReader(file, inputBytesMax+1))
	if err != nil {
		return nil, err
	}
	if len(content) > inputBytesMax {
		return nil, fmt.Errorf("%s is larger than %d bytes", path, inputBytesMax)
	}
	return content, nil
}

// checkStatic refuses what could not start in this image: there is no loader and no library in it, and
// the error that a user would see there ("no such file or directory") does not say so.
func checkStatic(binary []byte, machine elf.Machine) error {
	file, err := elf.NewFile(bytes.NewReader(binary))
	if err != nil {
		return fmt.Errorf("not a Linux program: %w", err)
	}
	if file.Machine != machine {
		return fmt.Errorf("made for %s, the image is for %s", file.Machine, machine)
	}
	for _, part := range file.Progs {
		if part.Type == elf.PT_INTERP {
			return errors.New("dynamically linked; build it with RUSTFLAGS=\"-C target-feature=+crt-static\"" +
				" and an explicit --target")
		}
	}
	return nil
}
