package harness

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	core "k8s.io/api/core/v1"
	storage "k8s.io/api/storage/v1"
	failures "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

const (
	volumeCount          = 12
	volumeSize           = "10Gi"
	storageClassName     = "standard"
	volumeRecyclePeriod  = time.Second
	volumeFolderMode     = 0o777
	defaultClassKey      = "storageclass.kubernetes.io/is-default-class"
	noProvisioner        = "kubernetes.io/no-provisioner"
	volumeNameFormat     = "volume-%02d"
	volumeErrorLogPeriod = 30 * time.Second
)

// keepVolumes is the component "volumes": it stands in for a storage provisioner. It makes the storage
// class and its volumes, and gives each volume back, empty, once its claim is gone. It asks rather than
// watches, since there are twelve objects, and outlives each stop of the API server.
func keepVolumes(ctx context.Context, client kubernetes.Interface, folder string, report func(error)) {
	var lastReport time.Time
	for {
		if err := keepVolumesOnce(ctx, client, folder); err != nil && time.Since(lastReport) > volumeErrorLogPeriod {
			report(err)
			lastReport = time.Now()
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(volumeRecyclePeriod):
		}
	}
}

func keepVolumesOnce(ctx context.Context, client kubernetes.Interface, folder string) error {
	list, err := client.CoreV1().PersistentVolumes().List(ctx, meta.ListOptions{})
	if err != nil {
		return fmt.Errorf("list the volumes: %w", err)
	}
	existing := map[string]*core.PersistentVolume{}
	for index := range list.Items {
		existing[list.Items[index].Name] = &list.Items[index]
	}
	for number := 1; number <= volumeCount; number++ {
		name := fmt.Sprintf(volumeNameFormat, number)
		volume, found := existing[name]
		switch {
		case !found:
			err = createVolume(ctx, client, name, filepath.Join(folder, name))
		case volume.Status.Phase == core.VolumeReleased:
			err = recycleVolume(ctx, client, volume, filepath.Join(folder, name))
		}
		if err != nil {
			return err
		}
	}
	return ensureStorageClass(ctx, client)
}

// recycleVolume empties the folder before the volume can be claimed again. A volume is released only
// after its claim is gone, and a claim stays for as long as a pod uses it.
func recycleVolume(ctx context.Context, client kubernetes.Interface, volume *core.PersistentVolume, folder string) error {
	if err := emptyFolder(folder); err != nil {
		return fmt.Errorf("recycle the volume %s: %w", volume.Name, err)
	}
	free := volume.DeepCopy()
	free.Spec.ClaimRef = nil
	// The resource version goes along: should somebody have changed the volume, this round fails and the next looks again.
	if _, err := client.CoreV1().PersistentVolumes().Update(ctx, free, meta.UpdateOptions{}); err != nil && !failures.IsConflict(err) {
		return fmt.Errorf("recycle the volume %s: %w", volume.Name, err)
	}
	return nil
}

func createVolume(ctx context.Context, client kubernetes.Interface, name, folder string) error {
	if err := emptyFolder(folder); err != nil {
		return fmt.Errorf("make the volume %s: %w", name, err)
	}
	_, err := client.CoreV1().PersistentVolumes().Create(ctx, newVolume(name, folder), meta.CreateOptions{})
	if err != nil && !failures.IsAlreadyExists(err) {
		return fmt.Errorf("make the volume %s: %w", name, err)
	}
	return nil
}

func newVolume(name, folder string) *core.PersistentVolume {
	kind := core.HostPathDirectory
	return &core.PersistentVolume{
		ObjectMeta: meta.ObjectMeta{Name: name},
		Spec: core.PersistentVolumeSpec{
			Capacity:                      core.ResourceList{core.ResourceStorage: resource.MustParse(volumeSize)},
			AccessModes:                   []core.PersistentVolumeAccessMode{core.ReadWriteOnce},
			PersistentVolumeReclaimPolicy: core.PersistentVolumeReclaimRetain,
			StorageClassName:              storageClassName,
			PersistentVolumeSource: core.PersistentVolumeSource{
				HostPath: &core.HostPathVolumeSource{Path: folder, Type: &kind},
			},
		},
	}
}

// ensureStorageClass comes after the volumes, so that its existence tells that they are there.
func ensureStorageClass(ctx context.Context, client kubernetes.Interface) error {
	_, err := client.StorageV1().StorageClasses().Get(ctx, storageClassName, meta.GetOptions{})
	if err == nil || !failures.IsNotFound(err) {
		return err
	}
	// Bound at once: all volumes are on the only node, so that there is nothing to wait for.
	mode, policy := storage.VolumeBindingImmediate, core.PersistentVolumeReclaimRetain
	_, err = client.StorageV1().StorageClasses().Create(ctx, &storage.StorageClass{
		ObjectMeta:        meta.ObjectMeta{Name: storageClassName, Annotations: map[string]string{defaultClassKey: "true"}},
		Provisioner:       noProvisioner,
		VolumeBindingMode: &mode,
		ReclaimPolicy:     &policy,
	}, meta.CreateOptions{})
	if err != nil && !failures.IsAlreadyExists(err) {
		return fmt.Errorf("make the storage class %s: %w", storageClassName, err)
	}
	return nil
}

// emptyFolder leaves an empty folder that every user may write to: the kubelet does not give a hostPath
// volume to the fsGroup of a pod.
func emptyFolder(folder string) error {
	if err := os.RemoveAll(folder); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.MkdirAll(folder, volumeFolderMode); err != nil {
		return err
	}
	return os.Chmod(folder, volumeFolderMode) // The umask took bits away.
}
