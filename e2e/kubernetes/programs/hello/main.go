// hello is what tests run in pods.
//
//	hello serve [ADDRESS]     answers every request with a line that names the pod, the client and
//	                          each header; ends on SIGTERM, when what is in flight is answered. Once /sick has been
//	                          asked for, /alive is 500, and gRPC's health service says NOT_SERVING. /hold is answered
//	                          once /release has been asked for
//	hello get URL [SECONDS]   prints what URL answers, trying for SECONDS (20) until that is 200
//	hello watch URL           asks every 50 ms until SIGTERM, then prints "good N, bad M" and what was bad
package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/signal"
	"sort"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

var client = &http.Client{Timeout: 2 * time.Second}

func main() {
	arguments := append(os.Args[1:], "", "", "")
	done, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	var err error
	switch arguments[0] {
	case "serve":
		err = serve(done, arguments[1])
	case "get":
		err = get(arguments[1], arguments[2])
	case "watch":
		watch(done, arguments[1])
	default:
		err = fmt.Errorf("usage: hello serve|get|watch")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func serve(done context.Context, address string) error {
	if address == "" {
		address = ":8080"
	}
	pod, _ := os.Hostname()
	var sick atomic.Bool
	released, release := context.WithCancel(context.Background())
	defer release()
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	server := &http.Server{Addr: address, Protocols: protocols, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path == "/grpc.health.v1.Health/Check":
			health(w, r, sick.Load())
			return
		case r.URL.Path == "/hold":
			select {
			case <-released.Done():
			case <-r.Context().Done():
			}
		case r.URL.Path == "/release":
			release()
		case r.URL.Path == "/sick":
			sick.Store(true)
		case r.URL.Path == "/alive" && sick.Load():
			w.WriteHeader(http.StatusInternalServerError)
		}
		fmt.Fprintf(w, "hello from %s to %s %s\n", pod, r.RemoteAddr, r.URL.Path)
		names := make([]string, 0, len(r.Header))
		for name := range r.Header {
			names = append(names, name)
		}
		sort.Strings(names)
		for _, name := range names {
			fmt.Fprintf(w, "%s: %s\n", strings.ToLower(name), r.Header.Get(name))
		}
	})}
	ended := make(chan error, 1)
	go func() {
		<-done.Done()
		ended <- server.Shutdown(context.Background())
	}()
	if err := server.ListenAndServe(); err != http.ErrServerClosed {
		return err
	}
	return <-ended
}

// health answers with a HealthCheckResponse, whose status is SERVING (1) or NOT_SERVING (2).
func health(w http.ResponseWriter, r *http.Request, sick bool) {
	status := byte(1)
	if sick {
		status = 2
	}
	if _, err := io.Copy(io.Discard, r.Body); err != nil {
		return
	}
	w.Header().Set("Content-Type", "application/grpc")
	w.Header().Set("Trailer", "Grpc-Status")
	// A message that is not compressed, of two bytes: field 1, a varint.
	w.Write([]byte{0, 0, 0, 0, 2, 8, status})
	w.Header().Set("Grpc-Status", "0")
}

func ask(url string) (string, error) {
	response, err := client.Get(url)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s answered %s: %s", url, response.Status, body)
	}
	return string(body), err
}

func get(url, seconds string) error {
	limit, err := strconv.Atoi(seconds)
	if err != nil {
		limit = 20
	}
	for end := time.Now().Add(time.Duration(limit) * time.Second); ; time.Sleep(200 * time.Millisecond) {
		body, err := ask(url)
		if err == nil {
			fmt.Print(body)
			return nil
		}
		if time.Now().After(end) {
			return err
		}
	}
}

func watch(done context.Context, url string) {
	good, bad := 0, map[string]int{}
	ticks := time.NewTicker(50 * time.Millisecond)
	for {
		if _, err := ask(url); err == nil {
			good++
		} else {
			bad[err.Error()]++
		}
		select {
		case <-done.Done():
			count := 0
			for _, times := range bad {
				count += times
			}
			fmt.Printf("good %d, bad %d\n", good, count)
			for what, times := range bad {
				fmt.Printf("%d times: %s\n", times, what)
			}
			return
		case <-ticks.C:
		}
	}
}
