package harness

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
)

// pauseProgram is the file beside this binary that the build makes from the folder pause.
const pauseProgram = "pause"

// ensurePauseImage makes the image of the pods' sandboxes and imports it.
func (c *Cluster) ensurePauseImage(ctx context.Context) error {
	images, err := c.ctr(ctx, "images", "list", "--quiet")
	if err != nil {
		return err
	}
	if hasLine(images, pauseImage) {
		return nil
	}
	path := filepath.Join(filepath.Dir(c.settings.Executable), pauseProgram)
	program, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("read the pause program, which build.sh puts beside posthorn-cluster: %w", err)
	}
	archive, err := imageArchive(pauseImage, pauseProgram, program)
	if err != nil {
		return fmt.Errorf("make the pause image: %w", err)
	}
	archivePath := c.path("images", "pause.tar")
	if err := writeFile(archivePath, archive); err != nil {
		return err
	}
	_, err = c.importImage(ctx, archivePath)
	return err
}

// importImage gives an archive (of Docker's or the OCI's format) to the cluster and returns the names of its images.
func (c *Cluster) importImage(ctx context.Context, path string) ([]string, error) {
	// containerd's client is given the full path: it does not share this process's working folder's names.
	absolute, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("load the image archive %s: %w", path, err)
	}
	if _, err := os.Stat(absolute); err != nil {
		return nil, fmt.Errorf("load the image archive: %w", err)
	}
	output, err := c.ctr(ctx, "images", "import", absolute)
	if err != nil {
		return nil, fmt.Errorf("load the image archive %s: %w", path, err)
	}
	return importedNames(output), nil
}

// importedNames reads the output of `ctr images import`: "unpacking NAME (sha256:...)...done".
func importedNames(output string) []string {
	var names []string
	for _, line := range strings.Split(output, "\n") {
		if rest, ok := strings.CutPrefix(line, "unpacking "); ok {
			name, _, _ := strings.Cut(rest, " ")
			names = append(names, name)
		}
	}
	return names
}

// imageArchive makes an image of one static program in Docker's archive format: a manifest that names
// a configuration and layers, each a file of the archive.
func imageArchive(name, programName string, program []byte) ([]byte, error) {
	layer, err := tarOf([]archiveFile{{programName, 0o755, program}})
	if err != nil {
		return nil, err
	}
	configuration, err := json.Marshal(map[string]any{
		"architecture": runtime.GOARCH,
		"os":           "linux",
		"config":       map[string]any{"Entrypoint": []string{"/" + programName}, "User": "65535:65535"},
		"rootfs":       map[string]any{"type": "layers", "diff_ids": []string{"sha256:" + digest(layer)}},
	})
	if err != nil {
		return nil, err
	}
	configurationName, layerName := digest(configuration)+".json", digest(layer)+".tar"
	manifest, err := json.Marshal([]map[string]any{{
		"Config": configurationName, "RepoTags": []string{name}, "Layers": []string{layerName},
	}})
	if err != nil {
		return nil, err
	}
	return tarOf([]archiveFile{
		{configurationName, 0o644, configuration}, {layerName, 0o644, layer}, {"manifest.json", 0o644, manifest},
	})
}

type archiveFile struct {
	name    string
	mode    int64
	content []byte
}

// tarOf writes the files without owners and times, so that the same content makes the same archive.
func tarOf(files []archiveFile) ([]byte, error) {
	var archive bytes.Buffer
	writer := tar.NewWriter(&archive)
	for _, file := range files {
		header := &tar.Header{Name: file.name, Mode: file.mode, Size: int64(len(file.content)), Typeflag: tar.TypeReg}
		if err := writer.WriteHeader(header); err != nil {
			return nil, err
		}
		if _, err := writer.Write(file.content); err != nil {
			return nil, err
		}
	}
	if err := writer.Close(); err != nil {
		return nil, err
	}
	return archive.Bytes(), nil
}

func digest(content []byte) string {
	sum := sha256.Sum256(content)
	return hex.EncodeToString(sum[:])
}
