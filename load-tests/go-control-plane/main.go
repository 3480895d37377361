// A control plane on go-control-plane's snapshot cache, with as many services and endpoints as it is told: the
// peer that `cargo xtask bench control-plane` measures Pontoon against. What it serves has the names and the shape
// of what Pontoon serves.
package main

import (
	"context"
	"flag"
	"log"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	xds "github.com/envoyproxy/go-control-plane/pkg/server/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"
)

// group is the node hash: all proxies of one cluster share a snapshot, as they do in Pontoon.
type group struct{}

func (group) ID(node *core.Node) string { return node.GetCluster() }

func main() {
	xdsListen := flag.String("xds-listen", "127.0.0.1:18000", "where proxies come")
	httpListen := flag.String("http-listen", "127.0.0.1:18001", "where changes come")
	services := flag.Int("services", 1000, "how many services")
	registered := flag.Int("registered", 100, "how many of them are named as applications of a registry")
	endpoints := flag.Int("endpoints", 10, "how many endpoints each of them has")
	view := flag.String("view", "default/edge", "whom to serve: gateways (default/edge) or sidecars (default)")
	flag.Parse()

	snapshots := cache.NewSnapshotCache(true, group{}, nil)
	world := newWorld(*view, *services, *registered, *endpoints)
	publish := func() {
		if err := snapshots.SetSnapshot(context.Background(), *view, world.snapshot()); err != nil {
			log.Print(err)
		}
	}
	publish()

	// One change at a time: the snapshot is made from the one before.
	changes := make(chan func())
	go func() {
		for change := range changes {
			change()
			publish()
		}
	}()
	apply := func(answer http.ResponseWriter, change func()) {
		done := make(chan struct{})
		changes <- func() { change(); close(done) }
		<-done
		answer.WriteHeader(http.StatusNoContent)
	}
	http.HandleFunc("POST /endpoint", func(answer http.ResponseWriter, request *http.Request) {
		port, err := strconv.ParseUint(request.FormValue("port"), 10, 16)
		if err != nil {
			http.Error(answer, "port: "+err.Error(), http.StatusBadRequest)
			return
		}
		clusters := strings.Split(request.FormValue("clusters"), ",")
		apply(answer, func() { world.move(clusters, uint32(port)) })
	})
	http.HandleFunc("POST /weight", func(answer http.ResponseWriter, request *http.Request) {
		weight, err := strconv.ParseUint(request.FormValue("weight"), 10, 32)
		if err != nil || weight > whole {
			http.Error(answer, "weight: a number up to 10000", http.StatusBadRequest)
			return
		}
		apply(answer, func() { world.weigh(uint32(weight)) })
	})
	go func() { log.Fatal(http.ListenAndServe(*httpListen, nil)) }()

	server := grpc.NewServer(grpc.KeepaliveParams(keepalive.ServerParameters{Time: 30 * time.Second}))
	discovery.RegisterAggregatedDiscoveryServiceServer(server, xds.NewServer(context.Background(), snapshots, nil))
	listener, err := net.Listen("tcp", *xdsListen)
	if err != nil {
		log.Fatal(err)
	}
	log.Fatal(server.Serve(listener))
}
