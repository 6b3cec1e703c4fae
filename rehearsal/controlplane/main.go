// Command controlplane is every Go program that a rehearsal needs, in one binary.
//
// The programs share most of their code (client-go, apimachinery, gRPC), so one link step makes a
// binary of about 145 MB instead of six of 60 to 120 MB, and one build from an empty cache takes
// minutes instead of a quarter of an hour. The first argument names the program; the rest is that
// program's own command line, unchanged.
package main

import (
	"errors"
	"fmt"
	"os"
	"sort"
	"strings"
	_ "time/tzdata"

	"github.com/spf13/pflag"
	"go.etcd.io/etcd/server/v3/etcdmain"
	helmcmd "helm.sh/helm/v4/pkg/cmd"
	"helm.sh/helm/v4/pkg/kube"
	_ "k8s.io/client-go/plugin/pkg/client/auth"
	"k8s.io/component-base/cli"
	_ "k8s.io/component-base/logs/json/register"
	_ "k8s.io/component-base/metrics/prometheus/clientgo"
	_ "k8s.io/component-base/metrics/prometheus/version"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	controllermanager "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	scheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"
	kwokcrd "sigs.k8s.io/kwok/kustomize/crd"
	"sigs.k8s.io/kwok/pkg/config"
	kwokcmd "sigs.k8s.io/kwok/pkg/kwok/cmd"
	"sigs.k8s.io/kwok/pkg/log"
	"sigs.k8s.io/kwok/pkg/utils/signals"
)

// programs maps the first argument to the program it starts. Each returns an exit status.
var programs = map[string]func() int{
	"etcd":                    runEtcd,
	"kube-apiserver":          func() int { return cli.Run(apiserver.NewAPIServerCommand()) },
	"kube-controller-manager": func() int { return cli.Run(controllermanager.NewControllerManagerCommand()) },
	"kube-scheduler":          func() int { return cli.Run(scheduler.NewSchedulerCommand()) },
	"kwok":                    runKwok,
	"kwok-crds":               printKwokCRDs,
	"helm":                    runHelm,
}

func main() {
	if len(os.Args) < 2 || programs[os.Args[1]] == nil {
		names := make([]string, 0, len(programs))
		for name := range programs {
			names = append(names, name)
		}
		sort.Strings(names)
		fmt.Fprintf(os.Stderr, "usage: controlplane PROGRAM [ARGS...], PROGRAM being one of: %s\n", strings.Join(names, ", "))
		os.Exit(2)
	}
	run := programs[os.Args[1]]
	// The programs read os.Args themselves, so they must see their own name first.
	os.Args = os.Args[1:]
	os.Exit(run())
}

func runEtcd() int {
	etcdmain.Main(os.Args)
	return 0
}

// runKwok sets KWOK's flags up in the order that its own main does: logging and configuration
// flags are parsed before the command exists, because the configuration file carries the Stages.
func runKwok() int {
	// Every command inherits the process-wide flags, where Kubernetes' packages have registered a
	// `version` flag that is no boolean; KWOK's command wants to define its own.
	pflag.CommandLine = pflag.NewFlagSet("kwok", pflag.ContinueOnError)
	flags := pflag.NewFlagSet("global", pflag.ContinueOnError)
	flags.ParseErrorsAllowlist.UnknownFlags = true
	flags.Usage = func() {}
	ctx, logger := log.InitFlags(signals.SetupSignalContext(), flags)
	ctx, err := config.InitFlags(ctx, flags)
	if err != nil {
		logger.Error("Init config flags", "err", err)
		return 1
	}
	command := kwokcmd.NewCommand(ctx)
	command.PersistentFlags().AddFlagSet(flags)
	if err := command.ExecuteContext(ctx); err != nil {
		logger.Error("Execute exit", "err", err)
		return 1
	}
	return 0
}

// printKwokCRDs writes the CRDs with which KWOK is told, pod by pod, where logs, port-forward and
// exec lead. They are embedded in KWOK's module, so they always fit the KWOK in this binary.
func printKwokCRDs() int {
	for _, manifest := range [][]byte{kwokcrd.Logs, kwokcrd.Exec, kwokcrd.PortForward} {
		fmt.Printf("---\n%s\n", manifest)
	}
	return 0
}

func runHelm() int {
	kube.ManagedFieldsManager = "helm"
	command, err := helmcmd.NewRootCmd(os.Stdout, os.Args[1:], helmcmd.SetupLogging)
	if err != nil {
		fmt.Fprintln(os.Stderr, "Error:", err)
		return 1
	}
	if err := command.Execute(); err != nil {
		if failed, ok := errors.AsType[helmcmd.CommandError](err); ok {
			return failed.ExitCode
		}
		return 1
	}
	return 0
}
