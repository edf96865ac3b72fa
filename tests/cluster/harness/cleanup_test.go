package harness

import (
	"reflect"
	"strings"
	"testing"
)

func TestMountsAreUnmountedInnermostFirst(t *testing.T) {
	table := strings.Join([]string{
		"22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw",
		"40 22 0:40 / /state/default/kubelet/pods/a/volumes/token rw - tmpfs tmpfs rw",
		`41 22 0:41 / /state/default/kubelet/with\040blank rw - tmpfs tmpfs rw`,
		"42 22 0:42 / /state/default/run/rootfs rw - overlay overlay rw",
		"43 42 0:43 / /state/default/run/rootfs/proc rw - proc proc rw",
		"44 22 0:44 / /state/default-two/rootfs rw - overlay overlay rw",
		"",
	}, "\n")
	got := mountsBeneath(table, "/state/default")
	want := []string{
		"/state/default/kubelet/pods/a/volumes/token", "/state/default/run/rootfs/proc",
		"/state/default/run/rootfs", "/state/default/kubelet/with blank",
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %q\nwant %q", got, want)
	}
}

func TestTheContainerOfAProcessIsFoundInItsCgroup(t *testing.T) {
	id := strings.Repeat("0123456789abcdef", 4)
	check := func(content, expected string) {
		t.Helper()
		if got := containerOfCgroup(content); got != expected {
			t.Errorf("%q: got %q", content, got)
		}
	}
	check("4:memory:/kubepods/burstable/pod12-34/"+id+"\n", id)
	check("0::/kubepods/besteffort/pod12-34/"+id+"/inner\n", id)
	check("1:name=systemd:/\n4:memory:/kubepods/pod12-34/"+id+"\n", id)
	check("0::/system.slice/containerd.service\n", "")
	check("0::/"+id+"\n", "")
	check("0::/kubepods/pod12-34/short\n", "")
}

func TestOnlyTheKubeletsChainsAreRemoved(t *testing.T) {
	kept, changed := withoutKubeletChains(strings.Join([]string{
		"*mangle", ":PREROUTING ACCEPT [0:0]", ":KUBE-IPTABLES-HINT - [0:0]", ":DOCKER - [0:0]",
		"-A PREROUTING -j DOCKER", "-A OUTPUT -j KUBE-FIREWALL", "COMMIT", "",
	}, "\n"))
	want := strings.Join([]string{"*mangle", ":PREROUTING ACCEPT [0:0]", ":DOCKER - [0:0]", "-A PREROUTING -j DOCKER", "COMMIT", ""}, "\n")
	if !changed || kept != want {
		t.Errorf("got %v\n%s", changed, kept)
	}
	if _, changed := withoutKubeletChains(want); changed {
		t.Error("nothing was there to remove")
	}
}

func TestPodInterfacesAreKnownByTheGateway(t *testing.T) {
	got := podInterfaces("1: lo    inet 127.0.0.1/8 scope host lo\n" +
		"7: veth0a1b2c3d    inet 10.244.0.1/32 scope global veth0a1b2c3d\n" +
		"9: k8s0    inet 10.88.0.1/24 scope global k8s0\n")
	if !reflect.DeepEqual(got, []string{"veth0a1b2c3d"}) {
		t.Errorf("got %v", got)
	}
}

func TestNamesOfImportedImagesAreRead(t *testing.T) {
	got := importedNames("unpacking docker.io/library/posthorn:dev (sha256:12ab)...done\n")
	if !reflect.DeepEqual(got, []string{"docker.io/library/posthorn:dev"}) {
		t.Errorf("got %v", got)
	}
}

func TestTheSameProgramMakesTheSameImage(t *testing.T) {
	one, errOne := imageArchive("name:1", "pause", []byte("program"))
	two, errTwo := imageArchive("name:1", "pause", []byte("program"))
	if errOne != nil || errTwo != nil || !reflect.DeepEqual(one, two) {
		t.Errorf("%v, %v, %d and %d bytes", errOne, errTwo, len(one), len(two))
	}
}
