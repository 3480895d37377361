// A greeter and a proxyless client of it, both on grpc-go. The client finds the greeters by xDS alone and keeps one
// channel, so that what it is told of changes is seen in its calls.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"strconv"
	"time"

	// The types of what our sidecars are sent, to be read.
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/cors/v3"
	statuspb "github.com/envoyproxy/go-control-plane/envoy/service/status/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	_ "google.golang.org/grpc/xds" // the resolver of xds:///
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

const (
	service = "pontoon.e2e.Greeter"
	method  = "/" + service + "/Greet"
	// A call that finds no endpoint fails at once; one that hangs, after this.
	callTimeout = 5 * time.Second
	mostCalls   = 10_000
	// A channel without calls for so long asks xDS for nothing any more.
	idleTimeout = 2 * time.Second
)

func main() {
	var err error
	switch {
	case len(os.Args) == 3 && os.Args[1] == "serve":
		err = serve(os.Args[2])
	case len(os.Args) == 4 && os.Args[1] == "call":
		err = call(os.Args[2], os.Args[3])
	case len(os.Args) == 3 && os.Args[1] == "status":
		err = status(os.Args[2])
	default:
		err = fmt.Errorf("use: serve NAME | call TARGET ADDR:PORT | status ADDR:PORT")
	}
	if err != nil {
		log.Fatal(err)
	}
}

// status prints what an xDS client says of itself (CSDS), with every resource in it read by its type.
func status(address string) error {
	connection, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer connection.Close()
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	client := statuspb.NewClientStatusDiscoveryServiceClient(connection)
	answer, err := client.FetchClientStatus(ctx, &statuspb.ClientStatusRequest{})
	if err != nil {
		return err
	}
	text, err := protojson.Marshal(answer)
	if err != nil {
		return err
	}
	_, err = fmt.Println(string(text))
	return err
}

// serve answers every call with name, and prints where.
func serve(name string) error {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	server := grpc.NewServer()
	server.RegisterService(&grpc.ServiceDesc{
		ServiceName: service,
		HandlerType: (*any)(nil),
		Methods: []grpc.MethodDesc{{
			MethodName: "Greet",
			Handler: func(_ any, _ context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
				if err := decode(&wrapperspb.StringValue{}); err != nil {
					return nil, err
				}
				return wrapperspb.String(name), nil
			},
		}},
	}, struct{}{})
	fmt.Printf("listening %s\n", listener.Addr())
	return server.Serve(listener)
}

// call makes calls for whoever asks over HTTP (/?calls=N) and answers with who answered how many of them; a call that
// failed is counted under its error.
func call(target, address string) error {
	channel, err := grpc.NewClient(
		target,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithIdleTimeout(idleTimeout),
	)
	if err != nil {
		return err
	}
	handler := func(answer http.ResponseWriter, request *http.Request) {
		calls, err := strconv.Atoi(request.URL.Query().Get("calls"))
		if err != nil || calls < 1 || calls > mostCalls {
			http.Error(answer, "calls: expected a number, 1 to 10000", http.StatusBadRequest)
			return
		}
		counts := map[string]int{}
		for range calls {
			counts[one(request.Context(), channel)]++
		}
		answer.Header().Set("content-type", "application/json")
		if err := json.NewEncoder(answer).Encode(counts); err != nil {
			log.Print(err)
		}
	}
	return http.ListenAndServe(address, http.HandlerFunc(handler))
}

func one(ctx context.Context, channel *grpc.ClientConn) string {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	reply := &wrapperspb.StringValue{}
	if err := channel.Invoke(ctx, method, wrapperspb.String("pontoon"), reply); err != nil {
		return "failed: " + err.Error()
	}
	return reply.GetValue()
}
