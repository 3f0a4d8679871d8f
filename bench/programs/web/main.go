// Web serves HTTP and says where, or, with an address, a number of connections and of requests, asks such a server
// and prints how long that took.
package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func serve() {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	check(err)
	fmt.Println(listener.Addr())
	page := []byte("a page\n")
	check(http.Serve(listener, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.Write(page) })))
}

func main() {
	if len(os.Args) < 4 {
		serve()
	}
	connections, err := strconv.Atoi(os.Args[2])
	check(err)
	requests, err := strconv.Atoi(os.Args[3])
	check(err)
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: connections}, Timeout: time.Minute}
	var left atomic.Int64
	left.Store(int64(requests))
	var all sync.WaitGroup
	start := time.Now()
	for range connections {
		all.Add(1)
		go func() {
			defer all.Done()
			for left.Add(-1) >= 0 {
				response, err := client.Get(os.Args[1])
				check(err)
				_, err = io.Copy(io.Discard, response.Body)
				check(err)
				response.Body.Close()
				if response.StatusCode != 200 {
					check(fmt.Errorf("status %s", response.Status))
				}
			}
		}()
	}
	all.Wait()
	check(json.NewEncoder(os.Stdout).Encode(map[string]any{"count": requests, "seconds": time.Since(start).Seconds()}))
}
