// Times itself with a variable that may be remote; prints nanoseconds.
//
//	remote atomic N    what an atomic addition to it takes, of N: the median, and on average
//	remote load N      the same of a plain read
//	remote store N     and of a plain write
//	remote work N K    computing, allocating and system calls, N times some ten milliseconds of it, with one addition
//	                   to the variable after every K times; in all
package main

import (
	"crypto/sha256"
	"fmt"
	"os"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

var (
	counter int64
	sink    int64
)

func main() {
	count, _ := strconv.Atoi(os.Args[2])
	atomic.AddInt64(&counter, 1) // the first access warms everything
	start := time.Now()
	switch os.Args[1] {
	case "atomic":
		each(count, func(int) { atomic.AddInt64(&counter, 1) })
	case "load":
		each(count, func(int) { sink += atomic.LoadInt64(&counter) })
	case "store":
		each(count, func(i int) { counter = int64(i) })
	case "work":
		between, _ := strconv.Atoi(os.Args[3])
		for i := range count {
			for range 5 {
				work()
			}
			if (i+1)%between == 0 {
				atomic.AddInt64(&counter, 1)
			}
		}
		fmt.Println(time.Since(start).Nanoseconds())
	}
}

// each prints what access takes.
func each(count int, access func(int)) {
	took := make([]int64, count)
	var all int64
	for i := range took {
		start := time.Now()
		access(i)
		took[i] = time.Since(start).Nanoseconds()
		all += took[i]
	}
	slices.Sort(took)
	fmt.Println(took[count/2], all/int64(count))
}

func work() {
	var group sync.WaitGroup
	for g := range 2 {
		group.Add(1)
		go func() {
			defer group.Done()
			data := make([]byte, 64<<10)
			words := map[int]string{}
			for i := range 40 {
				sum := sha256.Sum256(data)
				copy(data[i*32:], sum[:])
				words[i*g] = string(sum[:8])
			}
			file, _ := os.Open("/dev/zero")
			for range 40 {
				file.Read(data[:512])
			}
			file.Close()
		}()
	}
	group.Wait()
}
