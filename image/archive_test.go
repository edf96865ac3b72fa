package main

import (
	"archive/tar"
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// program makes the header of a 64-bit program with the given program headers.
func program(machine elf.Machine, parts ...elf.ProgType) []byte {
	const headerBytes, partBytes = 64, 56
	var out bytes.Buffer
	header := elf.Header64{
		Type: uint16(elf.ET_EXEC), Machine: uint16(machine), Version: uint32(elf.EV_CURRENT),
		Ehsize: headerBytes, Phoff: headerBytes, Phentsize: partBytes, Phnum: uint16(len(parts)),
	}
	copy(header.Ident[:], []byte{0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)})
	_ = binary.Write(&out, binary.LittleEndian, header) // A buffer takes every write.
	for _, part := range parts {
		_ = binary.Write(&out, binary.LittleEndian, elf.Prog64{Type: uint32(part)})
	}
	return out.Bytes()
}

// inputs writes a binary and a list of authorities into a folder of their own.
func inputs(t *testing.T, binary []byte) options {
	t.Helper()
	folder := t.TempDir()
	wanted := options{
		binary:         filepath.Join(folder, "posthorn"),
		caCertificates: filepath.Join(folder, "authorities.crt"),
		out:            filepath.Join(folder, "posthorn.tar"),
		name:           "posthorn:dev", architecture: "amd64", version: "1.2.3",
	}
	for path, content := range map[string][]byte{wanted.binary: binary, wanted.caCertificates: []byte("authorities\n")} {
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return wanted
}

func makeOrFail(t *testing.T, wanted options) made {
	t.Helper()
	result, err := makeArchive(wanted)
	if err != nil {
		t.Fatal(err)
	}
	return result
}

func TestTheSameInputsMakeTheSameArchive(t *testing.T) {
	one, two := inputs(t, program(elf.EM_X86_64)), inputs(t, program(elf.EM_X86_64))
	first, second := makeOrFail(t, one), makeOrFail(t, two)
	if first != second {
		t.Errorf("results differ: %v and %v", first, second)
	}
	contentOne, errOne := os.ReadFile(one.out)
	contentTwo, errTwo := os.ReadFile(two.out)
	if err := errors.Join(errOne, errTwo); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(contentOne, contentTwo) {
		t.Error("archives differ")
	}
	if int64(len(contentOne)) != first.archiveBytes {
		t.Errorf("reported %d bytes, wrote %d", first.archiveBytes, len(contentOne))
	}
}

func TestAnotherBinaryMakesAnotherDigest(t *testing.T) {
	one := makeOrFail(t, inputs(t, program(elf.EM_X86_64)))
	two := makeOrFail(t, inputs(t, append(program(elf.EM_X86_64), 'x')))
	if one.digest == two.digest {
		t.Errorf("both have %s", one.digest)
	}
}

// load reads the image back as an importer would.
func load(t *testing.T, wanted options) v1.Image {
	t.Helper()
	tag, err := name.NewTag(wanted.name)
	if err != nil {
		t.Fatal(err)
	}
	image, err := tarball.ImageFromPath(wanted.out, &tag)
	if err != nil {
		t.Fatal(err)
	}
	return image
}

func TestTheConfigurationNamesUserEntrypointAndLabels(t *testing.T) {
	wanted := inputs(t, program(elf.EM_X86_64))
	makeOrFail(t, wanted)
	file, err := load(t, wanted).ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	if file.Config.User != "65532:65532" {
		t.Errorf("user %q", file.Config.User)
	}
	if !reflect.DeepEqual(file.Config.Entrypoint, []string{"/posthorn"}) {
		t.Errorf("entrypoint %q", file.Config.Entrypoint)
	}
	if file.Config.Labels["org.opencontainers.image.version"] != "1.2.3" {
		t.Errorf("labels %v", file.Config.Labels)
	}
	if file.OS != "linux" || file.Architecture != "amd64" {
		t.Errorf("platform %s/%s", file.OS, file.Architecture)
	}
}

func TestTheImageHoldsTheFilesThatPosthornReads(t *testing.T) {
	wanted := inputs(t, program(elf.EM_X86_64))
	makeOrFail(t, wanted)
	type found struct {
		kind  byte
		mode  int64
		owner int
	}
	want := map[string]found{
		"data":                              {tar.TypeDir, 0o750, 65532},
		"etc":                               {tar.TypeDir, 0o755, 0},
		"etc/group":                         {tar.TypeReg, 0o644, 0},
		"etc/nsswitch.conf":                 {tar.TypeReg, 0o644, 0},
		"etc/passwd":                        {tar.TypeReg, 0o644, 0},
		"etc/ssl":                           {tar.TypeDir, 0o755, 0},
		"etc/ssl/certs":                     {tar.TypeDir, 0o755, 0},
		"etc/ssl/certs/ca-certificates.crt": {tar.TypeReg, 0o644, 0},
		"posthorn":                          {tar.TypeReg, 0o755, 0},
		"tmp":                               {tar.TypeDir, 0o1777, 0},
	}
	content := mutate.Extract(load(t, wanted))
	defer content.Close()
	got := map[string]found{}
	for reader := tar.NewReader(content); ; {
		header, err := reader.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		got[strings.TrimSuffix(header.Name, "/")] = found{header.Typeflag, header.Mode, header.Uid}
		if header.ModTime.Unix() != 0 {
			t.Errorf("%s has the time %s", header.Name, header.ModTime)
		}
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %v\nwant %v", got, want)
	}
}

func TestABinaryThatCouldNotStartIsRefused(t *testing.T) {
	check := func(binary []byte, expected string) {
		t.Helper()
		wanted := inputs(t, binary)
		_, err := makeArchive(wanted)
		if err == nil || !strings.Contains(err.Error(), expected) {
			t.Errorf("got %v, want an error with %q", err, expected)
		}
		if _, err := os.Stat(wanted.out); !os.IsNotExist(err) {
			t.Errorf("an archive was left: %v", err)
		}
	}
	check([]byte("#!/bin/sh\n"), "not a Linux program")
	check(program(elf.EM_AARCH64), "made for EM_AARCH64")
	check(program(elf.EM_X86_64, elf.PT_INTERP), "dynamically linked")
}
