// Goevents says what events of goroutines cost: "KIND N" on standard input answers with the nanoseconds of processor
// time per round. A round of "switch" makes a goroutine block on a channel, unblocks it and lets it run, twice; one of
// "create" creates a goroutine, which runs and exits; one of "yield" gives the processor away.
package main

import (
	"bufio"
	"fmt"
	"os"
	"runtime"
	"sync"
	"syscall"
)

func processorTime() int64 {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		panic(err)
	}
	return usage.Utime.Nano() + usage.Stime.Nano()
}

func main() {
	runtime.GOMAXPROCS(1)
	there, back := make(chan int), make(chan int)
	go func() {
		for number := range there {
			back <- number
		}
	}()
	fmt.Println("ready", os.Getpid())
	input := bufio.NewScanner(os.Stdin)
	for input.Scan() {
		var kind string
		var count int
		fmt.Sscan(input.Text(), &kind, &count)
		start := processorTime()
		switch kind {
		case "switch":
			for i := 0; i < count; i++ {
				there <- i
				<-back
			}
		case "create":
			var done sync.WaitGroup
			for i := 0; i < count; i++ {
				done.Add(1)
				go done.Done()
				runtime.Gosched()
			}
			done.Wait()
		}
		fmt.Println(float64(processorTime()-start) / float64(count))
	}
}
