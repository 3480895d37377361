package main

import (
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
)

const (
	patience = 10 * time.Second
	// As the service of the original is called.
	method = "/proto.EchoTestService/Echo"
)

type client struct {
	method  string
	headers [][2]string
	http    *http.Client
}

// Sends one request and prints what came of it, and an empty line.
func (c *client) request(target string, number int) error {
	to, err := url.Parse(target)
	if err != nil {
		return err
	}
	fmt.Printf("[%d] Url=%s\n", number, target)
	for _, header := range c.headers {
		fmt.Printf("[%d] Header=%s:%s\n", number, header[0], header[1])
	}
	var body string
	switch to.Scheme {
	case "http", "https":
		body, err = c.hypertext(to, number)
	case "grpc":
		body, err = c.call(to)
	case "tcp":
		body, err = line(to.Host)
	default:
		err = errors.New("expected http://, https://, grpc:// or tcp://")
	}
	if err != nil {
		return err
	}
	for _, line := range strings.Split(strings.TrimRight(body, "\n"), "\n") {
		fmt.Printf("[%d body] %s\n", number, line)
	}
	fmt.Println()
	return nil
}

// The client of all requests of one kind, so that they share connections.
func (c *client) through(protocols func(*http.Protocols)) *http.Client {
	if c.http == nil {
		transport := &http.Transport{
			Protocols:       new(http.Protocols),
			TLSClientConfig: &tls.Config{InsecureSkipVerify: true},
		}
		protocols(transport.Protocols)
		c.http = &http.Client{
			Transport:     transport,
			Timeout:       patience,
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		}
	}
	return c.http
}

func (c *client) hypertext(to *url.URL, number int) (string, error) {
	request, err := http.NewRequest(c.method, to.String(), nil)
	if err != nil {
		return "", err
	}
	c.dress(request)
	response, err := c.through(func(p *http.Protocols) { p.SetHTTP1(true) }).Do(request)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	fmt.Printf("[%d] StatusCode=%d\n", number, response.StatusCode)
	names := make([]string, 0, len(response.Header))
	for name := range response.Header {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		for _, value := range response.Header[name] {
			fmt.Printf("[%d] ResponseHeader=%s:%s\n", number, name, value)
		}
	}
	body, err := io.ReadAll(response.Body)
	return string(body), err
}

func (c *client) dress(request *http.Request) {
	for _, header := range c.headers {
		if strings.EqualFold(header[0], "host") {
			request.Host = header[1]
		} else {
			request.Header.Add(header[0], header[1])
		}
	}
}

// One call of gRPC: a message each way, with one string in it.
func (c *client) call(to *url.URL) (string, error) {
	body := bytes.NewReader(frame("hello"))
	request, err := http.NewRequest(http.MethodPost, "http://"+to.Host+method, body)
	if err != nil {
		return "", err
	}
	c.dress(request)
	request.Header.Set("Content-Type", "application/grpc")
	request.Header.Set("Te", "trailers")
	response, err := c.through(func(p *http.Protocols) { p.SetUnencryptedHTTP2(true) }).Do(request)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	answer, err := io.ReadAll(response.Body)
	if err != nil {
		return "", err
	}
	// Where there is no message, they are in the head.
	status, said := response.Trailer.Get("Grpc-Status"), response.Trailer.Get("Grpc-Message")
	if status == "" {
		status, said = response.Header.Get("Grpc-Status"), response.Header.Get("Grpc-Message")
	}
	if status != "0" {
		return "", fmt.Errorf("HTTP status %d, grpc-status %q: %s", response.StatusCode, status, said)
	}
	return message(answer)
}

// A gRPC message (five bytes before it) with the text as its field 1.
func frame(text string) []byte {
	proto := append(binary.AppendUvarint([]byte{1<<3 | 2}, uint64(len(text))), text...)
	return append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(proto))), proto...)
}

func message(framed []byte) (string, error) {
	malformed := errors.New("the answer is no message with a text in its field 1")
	if len(framed) < 6 || framed[0] != 0 || framed[5] != 1<<3|2 {
		return "", malformed
	}
	length, read := binary.Uvarint(framed[6:])
	if text := framed[6+max(read, 0):]; read > 0 && uint64(len(text)) == length {
		return string(text), nil
	}
	return "", malformed
}

func line(address string) (string, error) {
	connection, err := net.DialTimeout("tcp", address, patience)
	if err != nil {
		return "", err
	}
	defer connection.Close()
	if err := connection.SetDeadline(time.Now().Add(patience)); err != nil {
		return "", err
	}
	if _, err := fmt.Fprintln(connection, "hello"); err != nil {
		return "", err
	}
	answer, err := io.ReadAll(connection)
	return string(answer), err
}
