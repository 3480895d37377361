package main

import (
	"fmt"
	"log"
	"strconv"
	"time"

	cluster "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpoint "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	router "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	hcm "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/types"
	"github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// whole is all of a weight.
const whole = 10000

// sidecars is the view of those that ask by name; any other is a gateway's.
const sidecars = "default"

// target is the cluster that the service under migration, the first one, moves to.
const target = "pool/default/target"

// world is what is served. Resources are never altered, only replaced: a snapshot may still hold them.
type world struct {
	view       string
	services   []service
	endpoints  int
	clusters   []types.Resource
	assigned   []types.Resource
	byCluster  map[string]int
	listeners  []types.Resource
	routes     []types.Resource
	weight     uint32
	generation uint64
	versions   map[string]string
}

type service struct {
	name, cluster string
}

func newWorld(view string, services, registered, endpoints int) *world {
	w := &world{view: view, endpoints: endpoints, byCluster: map[string]int{}, versions: map[string]string{}}
	for i := range services {
		name := fmt.Sprintf("svc-%05d", i)
		of := "pool/default/" + name
		if i < registered {
			of = fmt.Sprintf("eureka/SVC-%05d", i)
		}
		w.services = append(w.services, service{name, of})
		w.add(of, i)
	}
	w.add(target, services)
	w.link()
	for _, kind := range []string{"clusters", "endpoints", "listeners", "routes"} {
		w.touch(kind)
	}
	return w
}

func (w *world) add(name string, number int) {
	w.byCluster[name] = len(w.assigned)
	w.clusters = append(w.clusters, &cluster.Cluster{
		Name:                 name,
		ConnectTimeout:       durationpb.New(5 * time.Second),
		LbPolicy:             cluster.Cluster_LEAST_REQUEST,
		ClusterDiscoveryType: &cluster.Cluster_Type{Type: cluster.Cluster_EDS},
		EdsClusterConfig:     &cluster.Cluster_EdsClusterConfig{EdsConfig: ads(), ServiceName: name},
	})
	w.assigned = append(w.assigned, w.assignment(name, number, 8080))
}

// assignment gives the first endpoint this port.
func (w *world) assignment(name string, number int, port uint32) *endpoint.ClusterLoadAssignment {
	var all []*endpoint.LbEndpoint
	for i := range w.endpoints {
		address := socket(fmt.Sprintf("10.%d.%d.%d", number>>8, number&255, i+1), port)
		all = append(all, &endpoint.LbEndpoint{
			HealthStatus:        core.HealthStatus_HEALTHY,
			LoadBalancingWeight: wrapperspb.UInt32(1),
			HostIdentifier:      &endpoint.LbEndpoint_Endpoint{Endpoint: &endpoint.Endpoint{Address: address}},
		})
		port = 8080
	}
	return &endpoint.ClusterLoadAssignment{
		ClusterName: name,
		Endpoints:   []*endpoint.LocalityLbEndpoints{{LbEndpoints: all}},
	}
}

// move changes one endpoint of each of these clusters.
func (w *world) move(clusters []string, port uint32) {
	w.assigned = append([]types.Resource(nil), w.assigned...)
	for _, name := range clusters {
		if at, known := w.byCluster[name]; known {
			w.assigned[at] = w.assignment(name, at, port)
		}
	}
	w.touch("endpoints")
}

// weigh sends so much of the service under migration to its target.
func (w *world) weigh(weight uint32) {
	w.weight = weight
	w.link()
	w.touch("routes")
}

// link makes listeners and routes: of a gateway one each, of sidecars one route configuration a service.
func (w *world) link() {
	w.listeners, w.routes = nil, nil
	if w.view != sidecars {
		var routes []*route.Route
		for i, s := range w.services {
			routes = append(routes, w.route(i, s, "default/"+s.name, &route.RouteMatch{
				PathSpecifier: &route.RouteMatch_PathSeparatedPrefix{PathSeparatedPrefix: "/" + s.name},
			}))
		}
		const name = "default/edge/http"
		w.routes = []types.Resource{configuration(name, "*", routes)}
		w.listeners = []types.Resource{&listener.Listener{
			Name:    name,
			Address: socket("0.0.0.0", 8080),
			FilterChains: []*listener.FilterChain{{Filters: []*listener.Filter{{
				Name:       "envoy.filters.network.http_connection_manager",
				ConfigType: &listener.Filter_TypedConfig{TypedConfig: manager(name)},
			}}}},
		}}
		return
	}
	for i, s := range w.services {
		name := "default/" + s.name
		everything := &route.RouteMatch{PathSpecifier: &route.RouteMatch_Prefix{Prefix: "/"}}
		w.routes = append(w.routes, configuration(name, s.name, []*route.Route{w.route(i, s, name, everything)}))
		w.listeners = append(w.listeners, &listener.Listener{
			Name:        s.name,
			ApiListener: &listener.ApiListener{ApiListener: manager(name)},
		})
	}
}

func (w *world) route(number int, s service, name string, match *route.RouteMatch) *route.Route {
	action := &route.RouteAction{
		ClusterSpecifier: &route.RouteAction_Cluster{Cluster: s.cluster},
		Timeout:          durationpb.New(0),
		RetryPolicy: &route.RetryPolicy{
			RetryOn:    "connect-failure,refused-stream,reset-before-request",
			NumRetries: wrapperspb.UInt32(1),
		},
	}
	if number == 0 {
		weighted := func(cluster string, weight uint32) *route.WeightedCluster_ClusterWeight {
			return &route.WeightedCluster_ClusterWeight{Name: cluster, Weight: wrapperspb.UInt32(weight)}
		}
		action.ClusterSpecifier = &route.RouteAction_WeightedClusters{WeightedClusters: &route.WeightedCluster{
			Clusters: []*route.WeightedCluster_ClusterWeight{
				weighted(target, w.weight), weighted(s.cluster, whole-w.weight),
			},
		}}
	}
	return &route.Route{Name: name, Match: match, Action: &route.Route_Route{Route: action}}
}

func (w *world) touch(kind string) {
	w.generation++
	w.versions[kind] = strconv.FormatUint(w.generation, 10)
}

// snapshot keeps the version of each type that did not change.
func (w *world) snapshot() *cache.Snapshot {
	snapshot := &cache.Snapshot{}
	snapshot.Resources[types.Cluster] = cache.NewResources(w.versions["clusters"], w.clusters)
	snapshot.Resources[types.Endpoint] = cache.NewResources(w.versions["endpoints"], w.assigned)
	snapshot.Resources[types.Listener] = cache.NewResources(w.versions["listeners"], w.listeners)
	snapshot.Resources[types.Route] = cache.NewResources(w.versions["routes"], w.routes)
	return snapshot
}

func configuration(name, host string, routes []*route.Route) *route.RouteConfiguration {
	return &route.RouteConfiguration{
		Name:         name,
		VirtualHosts: []*route.VirtualHost{{Name: host, Domains: []string{"*"}, Routes: routes}},
	}
}

func manager(routes string) *anypb.Any {
	return packed(&hcm.HttpConnectionManager{
		StatPrefix: "front",
		RouteSpecifier: &hcm.HttpConnectionManager_Rds{
			Rds: &hcm.Rds{ConfigSource: ads(), RouteConfigName: routes},
		},
		HttpFilters: []*hcm.HttpFilter{{
			Name:       "envoy.filters.http.router",
			ConfigType: &hcm.HttpFilter_TypedConfig{TypedConfig: packed(&router.Router{})},
		}},
	})
}

func socket(address string, port uint32) *core.Address {
	return &core.Address{Address: &core.Address_SocketAddress{SocketAddress: &core.SocketAddress{
		Address:       address,
		PortSpecifier: &core.SocketAddress_PortValue{PortValue: port},
	}}}
}

func ads() *core.ConfigSource {
	return &core.ConfigSource{
		ResourceApiVersion:    core.ApiVersion_V3,
		ConfigSourceSpecifier: &core.ConfigSource_Ads{Ads: &core.AggregatedConfigSource{}},
	}
}

func packed(message proto.Message) *anypb.Any {
	any, err := anypb.New(message)
	if err != nil {
		log.Fatal(err)
	}
	return any
}
