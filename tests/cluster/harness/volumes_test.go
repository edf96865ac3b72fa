package harness

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	core "k8s.io/api/core/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"
)

func volume(t *testing.T, client *fake.Clientset, name string) *core.PersistentVolume {
	t.Helper()
	got, err := client.CoreV1().PersistentVolumes().Get(context.Background(), name, meta.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return got
}

// claimed gives the first volume a claim, a phase and a file.
func claimed(t *testing.T, client *fake.Clientset, folder string, phase core.PersistentVolumePhase) string {
	t.Helper()
	if err := keepVolumesOnce(t.Context(), client, folder); err != nil {
		t.Fatal(err)
	}
	taken := volume(t, client, "volume-01")
	taken.Spec.ClaimRef = &core.ObjectReference{Namespace: "default", Name: "data"}
	taken.Status.Phase = phase
	if _, err := client.CoreV1().PersistentVolumes().Update(t.Context(), taken, meta.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(folder, "volume-01", "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := keepVolumesOnce(t.Context(), client, folder); err != nil {
		t.Fatal(err)
	}
	return file
}

func TestVolumesAndTheDefaultClassAreMade(t *testing.T) {
	client, folder := fake.NewClientset(), t.TempDir()
	if err := keepVolumesOnce(t.Context(), client, folder); err != nil {
		t.Fatal(err)
	}
	list, err := client.CoreV1().PersistentVolumes().List(t.Context(), meta.ListOptions{})
	if err != nil || len(list.Items) != volumeCount {
		t.Errorf("%d volumes, %v", len(list.Items), err)
	}
	class, err := client.StorageV1().StorageClasses().Get(t.Context(), "standard", meta.GetOptions{})
	if err != nil || class.Annotations[defaultClassKey] != "true" {
		t.Errorf("got %v, %v", class, err)
	}
	info, err := os.Stat(filepath.Join(folder, "volume-12"))
	if err != nil || info.Mode().Perm() != 0o777 {
		t.Errorf("got %v, %v", info, err)
	}
}

func TestAReleasedVolumeIsEmptiedAndGivenBack(t *testing.T) {
	client, folder := fake.NewClientset(), t.TempDir()
	file := claimed(t, client, folder, core.VolumeReleased)
	if volume(t, client, "volume-01").Spec.ClaimRef != nil {
		t.Error("it is still claimed")
	}
	if _, err := os.Stat(file); !os.IsNotExist(err) {
		t.Errorf("its file is still there: %v", err)
	}
}

func TestABoundVolumeIsLeftAlone(t *testing.T) {
	client, folder := fake.NewClientset(), t.TempDir()
	file := claimed(t, client, folder, core.VolumeBound)
	if volume(t, client, "volume-01").Spec.ClaimRef == nil {
		t.Error("its claim was taken away")
	}
	if _, err := os.Stat(file); err != nil {
		t.Error(err)
	}
}
