// A program that asks of its pod what NVIDIA's manager asks: flags, a service account, a leader's lease, templates in
// /manifests, nine kinds, ClusterIPs. It calls every NIMCache ready, and a NIMService once its models are answered.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
)

var (
	health  = flag.String("health-probe-bind-address", ":8081", "")
	metrics = flag.String("metrics-bind-address", "0", "")
	elect   = flag.Bool("leader-elect", false, "")
	_       = flag.Bool("zap-devel", false, "")
	_       = flag.String("zap-log-level", "info", "")
	_       = flag.String("zap-stacktrace-level", "error", "")
	_       = flag.String("zap-encoder", "json", "")
)

var kinds = []string{
	"nimcaches", "nimservices", "nimpipelines", "nimbuilds", "nemocustomizers", "nemodatastores", "nemoentitystores",
	"nemoevaluators", "nemoguardrails",
}

func resource(name string) schema.GroupVersionResource {
	return schema.GroupVersionResource{Group: "apps.nvidia.com", Version: "v1alpha1", Resource: name}
}

func serve(address string, paths ...string) {
	mux := http.NewServeMux()
	for _, path := range paths {
		mux.HandleFunc(path, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "ok") })
	}
	go func() { log.Fatal(http.ListenAndServe(address, mux)) }()
}

func main() {
	flag.Parse()
	template, err := os.ReadFile("/manifests/service.yaml")
	if err != nil {
		log.Fatal(err)
	}
	log.Printf("the template has %d bytes", len(template))
	config, err := rest.InClusterConfig()
	if err != nil {
		log.Fatal(err)
	}
	client := dynamic.NewForConfigOrDie(config)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	serve(*health, "/healthz", "/readyz")
	if *metrics != "0" {
		serve(*metrics, "/metrics")
	}
	for _, kind := range kinds {
		if _, err := client.Resource(resource(kind)).List(ctx, metav1.ListOptions{Limit: 1}); err != nil {
			log.Fatalf("%s: %v", kind, err)
		}
	}
	if !*elect {
		work(ctx, client)
		return
	}
	host, _ := os.Hostname()
	lock, err := resourcelock.NewFromKubeconfig(
		resourcelock.LeasesResourceLock, os.Getenv("OPERATOR_NAMESPACE"), "test-manager",
		resourcelock.ResourceLockConfig{Identity: host}, config, 10*time.Second)
	if err != nil {
		log.Fatal(err)
	}
	leaderelection.RunOrDie(ctx, leaderelection.LeaderElectionConfig{
		Lock: lock, LeaseDuration: 15 * time.Second, RenewDeadline: 10 * time.Second, RetryPeriod: 2 * time.Second,
		Callbacks: leaderelection.LeaderCallbacks{
			OnStartedLeading: func(ctx context.Context) { work(ctx, client) },
			OnStoppedLeading: func() { log.Print("no longer the leader") },
		},
	})
}

func work(ctx context.Context, client dynamic.Interface) {
	log.Print("working")
	for ctx.Err() == nil {
		each(ctx, client, "nimcaches", func(obj *unstructured.Unstructured) (map[string]any, error) {
			return map[string]any{"state": "Ready", "pvc": obj.GetName() + "-pvc"}, nil
		})
		each(ctx, client, "nimservices", func(obj *unstructured.Unstructured) (map[string]any, error) {
			return model(ctx, client, obj)
		})
		select {
		case <-ctx.Done():
		case <-time.After(300 * time.Millisecond):
		}
	}
}

// each writes what `judge` finds into the status of every object that is not ready yet.
func each(ctx context.Context, client dynamic.Interface, kind string,
	judge func(*unstructured.Unstructured) (map[string]any, error)) {
	found, err := client.Resource(resource(kind)).List(ctx, metav1.ListOptions{})
	if err != nil {
		log.Printf("%s: %v", kind, err)
		return
	}
	for _, obj := range found.Items {
		if state, _, _ := unstructured.NestedString(obj.Object, "status", "state"); state == "Ready" {
			continue
		}
		status, err := judge(&obj)
		if err == nil {
			body, _ := json.Marshal(map[string]any{"status": status})
			_, err = client.Resource(resource(kind)).Namespace(obj.GetNamespace()).Patch(
				ctx, obj.GetName(), types.MergePatchType, body, metav1.PatchOptions{FieldManager: "manager"}, "status")
		}
		if err != nil {
			log.Printf("%s %s: %v", kind, obj.GetName(), err)
		}
	}
}

// model asks the Service of a NIMService by its ClusterIP, for a pod has no other name service than its hosts file.
func model(ctx context.Context, client dynamic.Interface, obj *unstructured.Unstructured) (map[string]any, error) {
	services := schema.GroupVersionResource{Version: "v1", Resource: "services"}
	service, err := client.Resource(services).Namespace(obj.GetNamespace()).Get(ctx, obj.GetName(), metav1.GetOptions{})
	if err != nil {
		return nil, err
	}
	address, _, _ := unstructured.NestedString(service.Object, "spec", "clusterIP")
	port, _, _ := unstructured.NestedInt64(obj.Object, "spec", "expose", "service", "port")
	place := fmt.Sprintf("%s:%d", address, port)
	answer, err := (&http.Client{Timeout: 5 * time.Second}).Get("http://" + place + "/v1/models")
	if err != nil {
		return nil, err
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil || answer.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s from %s: %v", answer.Status, place, err)
	}
	found := map[string]any{"name": string(text), "clusterEndpoint": place, "externalEndpoint": ""}
	return map[string]any{"state": "Ready", "model": found}, nil
}
