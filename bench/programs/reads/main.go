// Reads a file in pieces of 32 KiB, or asks for the attributes of all files below a folder; says how much it has seen, and
// how long that took, as JSON.
package main

import (
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

func main() {
	start, total := time.Now(), int64(0)
	switch os.Args[1] {
	case "read":
		file, err := os.Open(os.Args[2])
		if err != nil {
			panic(err)
		}
		buffer := make([]byte, 32<<10)
		for {
			count, err := file.Read(buffer)
			total += int64(count)
			if err == io.EOF {
				break
			}
			if err != nil {
				panic(err)
			}
		}
	case "walk":
		err := filepath.WalkDir(os.Args[2], func(path string, entry fs.DirEntry, err error) error {
			if err == nil {
				_, err = entry.Info()
			}
			total++
			return err
		})
		if err != nil {
			panic(err)
		}
	}
	fmt.Printf("{\"seconds\": %.6f, \"count\": %d}\n", time.Since(start).Seconds(), total)
}
