package main

import (
	"context"
	"log/slog"
	"os"
	_ "time/tzdata" // CronJobs with a time zone are evaluated without the host's zone files.

	_ "github.com/coredns/coredns/core/plugin" // Registers the CoreDNS plugins.
	"github.com/coredns/coredns/coremain"
	"go.etcd.io/etcd/server/v3/etcdmain"
	helm "helm.sh/helm/v4/pkg/cmd"
	helmkube "helm.sh/helm/v4/pkg/kube"
	"k8s.io/component-base/cli"
	"k8s.io/component-base/logs"
	_ "k8s.io/component-base/logs/json/register"          // Registers the JSON log format.
	_ "k8s.io/component-base/metrics/prometheus/clientgo" // Registers client metrics.
	_ "k8s.io/component-base/metrics/prometheus/version"  // Registers version metrics.
	kubectl "k8s.io/kubectl/pkg/cmd"
	kubectlutil "k8s.io/kubectl/pkg/cmd/util"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	controllermanager "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	proxy "k8s.io/kubernetes/cmd/kube-proxy/app"
	scheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"
	kubelet "k8s.io/kubernetes/cmd/kubelet/app"
)

// components maps a component's name to the function that runs it. Each reads os.Args as if it were
// a program of its own and returns its exit code, unless it leaves through os.Exit itself.
var components = map[string]func() int{
	"coredns":                 runCoreDNS,
	"etcd":                    runEtcd,
	"helm":                    runHelm,
	"kube-apiserver":          func() int { return cli.Run(apiserver.NewAPIServerCommand()) },
	"kube-controller-manager": func() int { return cli.Run(controllermanager.NewControllerManagerCommand()) },
	"kube-proxy":              func() int { return cli.Run(proxy.NewProxyCommand()) },
	"kube-scheduler":          func() int { return cli.Run(scheduler.NewSchedulerCommand()) },
	"kubectl":                 runKubectl,
	"kubelet":                 func() int { return cli.Run(kubelet.NewKubeletCommand(context.Background())) },
}

func runCoreDNS() int {
	coremain.Run()
	return 0
}

func runEtcd() int {
	etcdmain.Main(os.Args)
	return 0
}

func runHelm() int {
	// Field ownership must not depend on the name that this binary was started by.
	helmkube.ManagedFieldsManager = "helm"
	command, err := helm.NewRootCmd(os.Stdout, os.Args[1:], helm.SetupLogging)
	if err != nil {
		slog.Error("helm: cannot set up the command", slog.Any("error", err))
		return 1
	}
	if err := command.Execute(); err != nil {
		if failure, ok := err.(helm.CommandError); ok {
			return failure.ExitCode
		}
		return 1
	}
	return 0
}

func runKubectl() int {
	// kubectl's own main sets the verbosity before the command exists, because flags are parsed
	// later than the set-up that already logs. A wrong value is reported by that later parse.
	_, _ = logs.GlogSetter(kubectl.GetLogVerbosity(os.Args))
	if err := cli.RunNoErrOutput(kubectl.NewDefaultKubectlCommand()); err != nil {
		kubectlutil.CheckErr(err) // Prints the error the way kubectl does, and exits.
	}
	return 0
}
