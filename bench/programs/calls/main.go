// Calls makes many calls of one kind and prints, as JSON, what one of them took.
//
//	calls cpu N            N rounds of arithmetic, no calls
//	calls pread N [G]      N preads of 100 bytes, shared among G goroutines (1)
//	calls wait N           N preads, print a line, then wait for standard input to end
package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

type result struct {
	Seconds float64 `json:"seconds"`
	Count   int64   `json:"count"`
	Check   uint64  `json:"check"`
}

func main() {
	count, err := strconv.ParseInt(os.Args[2], 10, 64)
	if err != nil {
		panic(err)
	}
	goroutines := 1
	if len(os.Args) > 3 {
		goroutines, err = strconv.Atoi(os.Args[3])
		if err != nil {
			panic(err)
		}
	}
	var r result
	switch os.Args[1] {
	case "cpu":
		r = arithmetic(count)
	case "pread":
		r = preads(count, goroutines)
	case "wait":
		preads(count, 8)
		fmt.Println("waiting")
		io.Copy(io.Discard, os.Stdin)
		return
	}
	json.NewEncoder(os.Stdout).Encode(r)
}

func arithmetic(count int64) result {
	x := uint64(88172645463325252)
	start := time.Now()
	for range count {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
	}
	return result{time.Since(start).Seconds(), count, x}
}

func preads(count int64, goroutines int) result {
	fd, err := syscall.Open("/etc/passwd", syscall.O_RDONLY, 0)
	if err != nil {
		panic(err)
	}
	var left, read atomic.Int64
	left.Store(count)
	var all sync.WaitGroup
	start := time.Now()
	for range goroutines {
		all.Add(1)
		go func() {
			defer all.Done()
			buffer := make([]byte, 100)
			for left.Add(-1) >= 0 {
				n, err := syscall.Pread(fd, buffer, 0)
				if err != nil {
					panic(err)
				}
				read.Add(int64(n))
			}
		}()
	}
	all.Wait()
	return result{time.Since(start).Seconds(), count, uint64(read.Load())}
}
