// An xDS server on go-control-plane's snapshot cache, over ADS and over a stream a type, in both variants. Tests say
// over HTTP what it serves to which node, have it send what no snapshot can hold, and read what clients answered.
package main

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"sync"

	cluster "github.com/envoyproxy/go-control-plane/envoy/service/cluster/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	endpoint "github.com/envoyproxy/go-control-plane/envoy/service/endpoint/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/service/listener/v3"
	route "github.com/envoyproxy/go-control-plane/envoy/service/route/v3"
	secret "github.com/envoyproxy/go-control-plane/envoy/service/secret/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/types"
	"github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	xds "github.com/envoyproxy/go-control-plane/pkg/server/v3"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	// What is inside of resources.
	_ "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
)

// Of requests that are kept to be read.
const mostKept = 1000

func main() {
	xdsListen := flag.String("xds-listen", "127.0.0.1:18000", "where clients come")
	httpListen := flag.String("http-listen", "127.0.0.1:18001", "where tests come")
	ads := flag.Bool("ads", true, "the cache's mode for ADS: nothing is answered until all of a type are named")
	flag.Parse()

	snapshots := cache.NewSnapshotCache(*ads, cache.IDHash{}, nil)
	streams := &streams{}
	http.HandleFunc("PUT /snapshot/{node}", func(answer http.ResponseWriter, request *http.Request) {
		made, err := read(request)
		if err == nil {
			err = snapshots.SetSnapshot(request.Context(), request.PathValue("node"), made)
		}
		done(answer, err)
	})
	http.HandleFunc("POST /send", func(answer http.ResponseWriter, request *http.Request) {
		done(answer, streams.send(request.Body))
	})
	http.HandleFunc("GET /requests", func(answer http.ResponseWriter, _ *http.Request) {
		answer.Header().Set("content-type", "application/json")
		done(answer, streams.show(answer))
	})
	tests, err := net.Listen("tcp", *httpListen)
	if err != nil {
		log.Fatal(err)
	}
	go func() { log.Fatal(http.Serve(tests, nil)) }()

	// Its keepalive is grpc-go's own: clients that ping more often than every five minutes are sent away.
	server := grpc.NewServer(grpc.StreamInterceptor(streams.follow))
	service := xds.NewServer(context.Background(), snapshots, nil)
	discovery.RegisterAggregatedDiscoveryServiceServer(server, service)
	cluster.RegisterClusterDiscoveryServiceServer(server, service)
	endpoint.RegisterEndpointDiscoveryServiceServer(server, service)
	listener.RegisterListenerDiscoveryServiceServer(server, service)
	route.RegisterRouteDiscoveryServiceServer(server, service)
	secret.RegisterSecretDiscoveryServiceServer(server, service)
	socket, err := net.Listen("tcp", *xdsListen)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("xds %s\nhttp %s\n", socket.Addr(), tests.Addr())
	log.Fatal(server.Serve(socket))
}

func done(answer http.ResponseWriter, err error) {
	if err != nil {
		http.Error(answer, err.Error(), http.StatusBadRequest)
	}
}

// read makes a snapshot of a JSON list of resources, each an Any, or of those of an encoded DiscoveryResponse. Equal
// content of a type has an equal version.
func read(request *http.Request) (*cache.Snapshot, error) {
	body, err := io.ReadAll(request.Body)
	if err != nil {
		return nil, err
	}
	var all discovery.DiscoveryResponse
	if request.Header.Get("content-type") == "application/x-protobuf" {
		err = proto.Unmarshal(body, &all)
	} else {
		err = protojson.Unmarshal(fmt.Appendf(nil, `{"resources": %s}`, body), &all)
	}
	if err != nil {
		return nil, err
	}
	var byType [types.UnknownType][]types.Resource
	for _, packed := range all.GetResources() {
		message, err := packed.UnmarshalNew()
		if err != nil {
			return nil, err
		}
		kind := cache.GetResponseType(packed.GetTypeUrl())
		if kind == types.UnknownType {
			return nil, fmt.Errorf("%s is no type of resource", packed.GetTypeUrl())
		}
		byType[kind] = append(byType[kind], message)
	}
	snapshot := &cache.Snapshot{}
	for kind, resources := range byType {
		sum := sha256.New()
		for _, resource := range resources {
			bytes, err := proto.MarshalOptions{Deterministic: true}.Marshal(resource)
			if err != nil {
				return nil, err
			}
			fmt.Fprintf(sum, "%d ", len(bytes))
			sum.Write(bytes)
		}
		snapshot.Resources[kind] = cache.NewResources(fmt.Sprintf("%x", sum.Sum(nil)[:8]), resources)
	}
	return snapshot, nil
}

// streams knows those that are open, and what came on any of them.
type streams struct {
	mutex sync.Mutex
	open  []*tapped
	kept  []proto.Message
}

// tapped is a stream that two may send on.
type tapped struct {
	grpc.ServerStream
	all     *streams
	sending sync.Mutex
}

func (s *streams) follow(service any, stream grpc.ServerStream, _ *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	one := &tapped{ServerStream: stream, all: s}
	s.mutex.Lock()
	s.open = append(s.open, one)
	s.mutex.Unlock()
	defer func() {
		s.mutex.Lock()
		defer s.mutex.Unlock()
		for at, other := range s.open {
			if other == one {
				s.open = append(s.open[:at], s.open[at+1:]...)
				return
			}
		}
	}()
	return next(service, one)
}

func (t *tapped) SendMsg(message any) error {
	t.sending.Lock()
	defer t.sending.Unlock()
	return t.ServerStream.SendMsg(message)
}

func (t *tapped) RecvMsg(message any) error {
	err := t.ServerStream.RecvMsg(message)
	if request, is := message.(proto.Message); err == nil && is {
		t.all.mutex.Lock()
		defer t.all.mutex.Unlock()
		t.all.kept = append(t.all.kept, proto.Clone(request))
		if len(t.all.kept) > mostKept {
			t.all.kept = t.all.kept[1:]
		}
	}
	return err
}

// sent is a response of one resource, be it what it may. Types and bytes are not looked at.
type sent struct {
	Type         string `json:"type"`
	ResourceType string `json:"resource_type"`
	Name         string `json:"name"`
	Value        []byte `json:"value"`
}

// send goes to every open stream, in the stream's own variant.
func (s *streams) send(body io.Reader) error {
	var what sent
	if err := json.NewDecoder(body).Decode(&what); err != nil {
		return err
	}
	const nonce, version = "sent by a test", "sent by a test"
	resource := &anypb.Any{TypeUrl: what.ResourceType, Value: what.Value}
	s.mutex.Lock()
	open := append([]*tapped(nil), s.open...)
	s.mutex.Unlock()
	for _, stream := range open {
		var response proto.Message = &discovery.DiscoveryResponse{
			TypeUrl: what.Type, Nonce: nonce, VersionInfo: version, Resources: []*anypb.Any{resource},
		}
		method, _ := grpc.Method(stream.Context())
		if isDelta(method) {
			named := &discovery.Resource{Name: what.Name, Version: version, Resource: resource}
			response = &discovery.DeltaDiscoveryResponse{
				TypeUrl: what.Type, Nonce: nonce, Resources: []*discovery.Resource{named},
			}
		}
		// A stream that has just ended needs none.
		if err := stream.SendMsg(response); err != nil {
			log.Print(err)
		}
	}
	return nil
}

func isDelta(method string) bool {
	return method == discovery.AggregatedDiscoveryService_DeltaAggregatedResources_FullMethodName
}

// show writes a JSON list of the newest requests.
func (s *streams) show(to io.Writer) error {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	all := make([]json.RawMessage, 0, len(s.kept))
	for _, request := range s.kept {
		text, err := protojson.Marshal(request)
		if err != nil {
			return err
		}
		all = append(all, text)
	}
	return json.NewEncoder(to).Encode(all)
}
