package main

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"
)

type server struct {
	version string
}

// Serves until it is told to end, or a port cannot be had.
func (s *server) run(plain, withTLS, grpc, tcp ports, certificate, key string) error {
	done, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	failed := make(chan error)
	for _, port := range slices.Concat(plain, grpc) {
		listener, err := net.Listen("tcp", fmt.Sprintf(":%d", port))
		if err != nil {
			return err
		}
		protocols := new(http.Protocols)
		protocols.SetHTTP1(true)
		protocols.SetHTTP2(true)
		protocols.SetUnencryptedHTTP2(true)
		server := &http.Server{Handler: s, Protocols: protocols}
		if slices.Contains(withTLS, port) {
			pair, err := pair(certificate, key)
			if err != nil {
				return err
			}
			server.TLSConfig = &tls.Config{Certificates: []tls.Certificate{pair}}
			go func() { failed <- server.ServeTLS(listener, "", "") }()
		} else {
			go func() { failed <- server.Serve(listener) }()
		}
		fmt.Printf("listening on port %d\n", port)
	}
	for _, port := range tcp {
		listener, err := net.Listen("tcp", fmt.Sprintf(":%d", port))
		if err != nil {
			return err
		}
		go func() { failed <- s.lines(listener) }()
	}
	select {
	case <-done.Done():
		return nil
	case err := <-failed:
		return err
	}
}

// ServeHTTP answers with a line for each thing that was asked.
func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if strings.HasPrefix(r.Header.Get("Content-Type"), "application/grpc") {
		if _, err := io.Copy(io.Discard, r.Body); err != nil {
			return
		}
		w.Header().Set("Content-Type", "application/grpc")
		w.Header().Set("Trailer", "Grpc-Status")
		w.Write(frame("StatusCode=200\n" + s.describe(r)))
		w.Header().Set("Grpc-Status", "0")
		return
	}
	w.Header().Set("Content-Type", "text/plain")
	io.WriteString(w, s.describe(r))
}

func (s *server) describe(r *http.Request) string {
	local, _ := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
	var lines strings.Builder
	line := func(name, value string) { fmt.Fprintf(&lines, "%s=%s\n", name, value) }
	line("ServiceVersion", s.version)
	line("ServicePort", port(local))
	line("Host", r.Host)
	line("URL", r.URL.RequestURI())
	line("Method", r.Method)
	line("Proto", r.Proto)
	client, _, _ := net.SplitHostPort(r.RemoteAddr)
	line("IP", client)
	if r.TLS != nil {
		line("Alpn", r.TLS.NegotiatedProtocol)
		line("ServerName", r.TLS.ServerName)
	}
	names := make([]string, 0, len(r.Header))
	for name := range r.Header {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		for _, value := range r.Header[name] {
			line("RequestHeader", name+":"+value)
		}
	}
	line("Hostname", hostname())
	return lines.String()
}

// Answers the first line of each connection.
func (s *server) lines(listener net.Listener) error {
	for {
		connection, err := listener.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer connection.Close()
			line, _ := bufio.NewReader(connection).ReadString('\n')
			fmt.Fprintf(connection, "StatusCode=200\nServiceVersion=%s\nServicePort=%s\nProto=TCP\nHostname=%s\nEcho=%s\n",
				s.version, port(connection.LocalAddr()), hostname(), strings.TrimSpace(line))
		}()
	}
}

func port(address net.Addr) string {
	if address == nil {
		return ""
	}
	_, port, _ := net.SplitHostPort(address.String())
	return port
}

func hostname() string {
	name, _ := os.Hostname()
	return name
}

// The certificate in the files, or one made for now.
func pair(certificate, key string) (tls.Certificate, error) {
	if _, err := os.Stat(certificate); err == nil {
		return tls.LoadX509KeyPair(certificate, key)
	}
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	template := x509.Certificate{
		SerialNumber: big.NewInt(1),
		DNSNames:     []string{hostname()},
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().Add(24 * 365 * time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, &template, &template, &private.PublicKey, private)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: private}, err
}
