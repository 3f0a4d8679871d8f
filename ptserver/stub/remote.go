//go:build linux && (amd64 || arm64)

// Package remote tells a program about the runtime server that provides its world: its files, its network, its
// environment, its processes.
//
// The package exists only in programs built with "ptserver build" (or "ptserver go build -buildmode=remote"), which
// do not run without a runtime server. A program that is also built without the stub keeps its use of this package
// in files with a build tag of its own.
//
// When the connection to the server is lost the program ends as it does on a panic, with all goroutines' traces on
// standard error and exit status 2, so no function here has to report that.
package remote

import (
	"strings"
	"syscall"
	"unsafe"
)

// The hypercalls of this package. The numbers below are those of package runtime's part of the stub; the numbers
// from infoCall+1 to lastCall are for later ones.
const (
	infoCall = 0xfff2 // (buffer, its length): how long the whole text is
	lastCall = 0xffff

	infoBytes    = 1024    // of the first buffer tried
	infoMaxBytes = 1 << 16 // of any text that INFO gives
)

// ServerInfo describes the runtime server and this program's session with it. A field that the server does not
// tell is empty.
type ServerInfo struct {
	Name       string // the server's name, such as "passthrough"
	Version    string // the server's version
	Session    string // what the server calls this run of this program
	Host       string // the machine that provides this program's world
	GOOSRemote string // the OS abstraction that this program was built for, such as "linux"
}

// Connected reports whether a runtime server answers this program's calls. In a program that runs it is true; it
// asks the stub host each time, which takes some microseconds.
func Connected() bool {
	_, errno := hypercall(infoCall, nil)
	return errno == 0
}

// Info returns what the runtime server tells about itself. It is the zero ServerInfo when there is none.
func Info() ServerInfo {
	buffer := make([]byte, infoBytes)
	length, errno := hypercall(infoCall, buffer)
	if errno == 0 && length > len(buffer) && length <= infoMaxBytes {
		buffer = make([]byte, length)
		length, errno = hypercall(infoCall, buffer)
	}
	if errno != 0 || length < 0 || length > len(buffer) {
		return ServerInfo{}
	}
	return parseInfo(string(buffer[:length]))
}

// parseInfo reads lines of the form key=value. Keys that it does not know are a newer stub host's.
func parseInfo(text string) ServerInfo {
	var info ServerInfo
	for _, line := range strings.Split(text, "\n") {
		key, value, _ := strings.Cut(line, "=")
		switch key {
		case "name":
			info.Name = value
		case "version":
			info.Version = value
		case "session":
			info.Session = value
		case "host":
			info.Host = value
		case "goosremote":
			info.GOOSRemote = value
		}
	}
	return info
}

// hypercall asks the stub host, which fills at most the whole buffer.
func hypercall(number uintptr, buffer []byte) (int, syscall.Errno) {
	for {
		result, _, errno := syscall.Syscall(number, uintptr(unsafe.Pointer(unsafe.SliceData(buffer))),
			uintptr(len(buffer)), 0)
		if errno != syscall.EINTR {
			return int(result), errno
		}
	}
}
