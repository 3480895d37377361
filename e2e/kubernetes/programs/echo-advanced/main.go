// echo-advanced stands in for the image of that name, which the conformance suite of the Gateway API runs in the pods of a
// mesh: a server that says what it was asked, and a client that says what it was answered, with the flags that the suite
// gives and the lines that it reads.
//
//	echo-advanced [--port N] [--tls N] [--grpc N] [--tcp N] [--crt FILE] [--key FILE] [--version V]
//	        serves each port that is given; of the --port ones those with TLS that are given to --tls too. Without
//	        certificate files it makes a certificate. Without ports they are 8080, 7070 for gRPC and 9090 for TCP.
//	client URL [--method M] [-H NAME:VALUE] [--count N]
//	        sends N (1) requests to http://, https://, grpc:// or tcp://, one after the other, and follows no redirect.
//	        Ends with 1 where one was not answered.
package main

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// A flag that may be given several times.
type several []string

func (s *several) String() string { return strings.Join(*s, ",") }

func (s *several) Set(value string) error {
	*s = append(*s, value)
	return nil
}

type ports []int

func (p *ports) String() string { return fmt.Sprint([]int(*p)) }

func (p *ports) Set(value string) error {
	port, err := strconv.ParseUint(value, 10, 16)
	*p = append(*p, int(port))
	return err
}

func main() {
	run := serve
	if filepath.Base(os.Args[0]) == "client" {
		run = ask
	}
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func serve(arguments []string) error {
	var server server
	var plain, tls, grpc, tcp ports
	flags := flag.NewFlagSet("echo-advanced", flag.ContinueOnError)
	flags.Var(&plain, "port", "HTTP/1.1 and HTTP/2")
	flags.Var(&tls, "tls", "which of the ports have TLS")
	flags.Var(&grpc, "grpc", "gRPC")
	flags.Var(&tcp, "tcp", "lines")
	certificate := flags.String("crt", "", "certificate, PEM")
	key := flags.String("key", "", "its key, PEM")
	flags.StringVar(&server.version, "version", "", "said in answers")
	if err := flags.Parse(arguments); err != nil {
		return err
	}
	if len(plain)+len(grpc)+len(tcp) == 0 {
		plain, grpc, tcp = ports{8080}, ports{7070}, ports{9090}
	}
	return server.run(plain, tls, grpc, tcp, *certificate, *key)
}

func ask(arguments []string) error {
	var client client
	var headers several
	flags := flag.NewFlagSet("client", flag.ContinueOnError)
	flags.StringVar(&client.method, "method", "GET", "of HTTP")
	flags.Var(&headers, "H", "NAME:VALUE")
	count := flags.Int("count", 1, "how many requests")
	// The URL comes before the flags.
	var url string
	for len(arguments) > 0 {
		if err := flags.Parse(arguments); err != nil {
			return err
		}
		if arguments = flags.Args(); len(arguments) > 0 {
			url, arguments = arguments[0], arguments[1:]
		}
	}
	for _, header := range headers {
		name, value, found := strings.Cut(header, ":")
		if !found {
			return fmt.Errorf("-H is %q: expected NAME:VALUE", header)
		}
		client.headers = append(client.headers, [2]string{strings.TrimSpace(name), strings.TrimSpace(value)})
	}
	for number := range *count {
		if err := client.request(url, number); err != nil {
			return fmt.Errorf("request %d to %s: %w", number, url, err)
		}
	}
	return nil
}
