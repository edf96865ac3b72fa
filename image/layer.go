package main

import (
	"archive/tar"
	"bytes"
	"embed"
	"fmt"
	"io/fs"
	"time"
)

// userID is the user and the group that Posthorn runs as; it owns nothing but its data folder.
const userID = 65532

// files are the small files that the Containerfile copies too.
//
//go:embed rootfs/etc
var files embed.FS

// entry is one file or, with a name that ends in a slash, one folder of the layer.
type entry struct {
	name    string
	mode    int64
	owner   int
	content []byte
}

// layerEntries lists the image's content; folders come before what lies in them.
func layerEntries(binary, authorities []byte) ([]entry, error) {
	entries := []entry{
		{name: "data/", mode: 0o750, owner: userID},
		{name: "etc/", mode: 0o755},
	}
	for _, name := range []string{"etc/group", "etc/nsswitch.conf", "etc/passwd"} {
		content, err := fs.ReadFile(files, "rootfs/"+name)
		if err != nil {
			return nil, err
		}
		entries = append(entries, entry{name: name, mode: 0o644, content: content})
	}
	return append(entries,
		entry{name: "etc/ssl/", mode: 0o755},
		entry{name: "etc/ssl/certs/", mode: 0o755},
		entry{name: "etc/ssl/certs/ca-certificates.crt", mode: 0o644, content: authorities},
		entry{name: "posthorn", mode: 0o755, content: binary},
		entry{name: "tmp/", mode: 0o1777},
	), nil
}

// layerContent writes the layer's uncompressed archive.
func layerContent(binary, authorities []byte) ([]byte, error) {
	entries, err := layerEntries(binary, authorities)
	if err != nil {
		return nil, err
	}
	var archive bytes.Buffer
	writer := tar.NewWriter(&archive)
	for _, entry := range entries {
		header := &tar.Header{
			Name: entry.name, Mode: entry.mode, Uid: entry.owner, Gid: entry.owner,
			Size: int64(len(entry.content)), ModTime: time.Unix(0, 0), Format: tar.FormatUSTAR,
			Typeflag: tar.TypeReg,
		}
		if entry.name[len(entry.name)-1] == '/' {
			header.Typeflag = tar.TypeDir
		}
		if err := writer.WriteHeader(header); err != nil {
			return nil, fmt.Errorf("%s: %w", entry.name, err)
		}
		if _, err := writer.Write(entry.content); err != nil {
			return nil, fmt.Errorf("%s: %w", entry.name, err)
		}
	}
	if err := writer.Close(); err != nil {
		return nil, err
	}
	return archive.Bytes(), nil
}
