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
	"runtime"
	"strings"
	"syscall"
	"unsafe"
)

// The hypercalls of this package. The numbers below are those of package runtime's part of the stub; the numbers
// from migrateCall+1 to lastCall are for later ones.
const (
	infoCall    = 0xfff2 // (buffer, its length): how long the whole text is
	hostsCall   = 0xfff3 // (): how many hosts
	hereCall    = 0xfff4 // (): the calling thread's host
	migrateCall = 0xfff5 // (host): 0, at that host
	lastCall    = 0xffff

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

// Hosts returns how many hosts execute this program ("ptserver run --spread"); 1 if it is not spread.
func Hosts() int {
	count, _, errno := syscall.RawSyscall(hostsCall, 0, 0, 0)
	if errno != 0 {
		return 1
	}
	return int(count)
}

// Here returns the number of the host that executes the calling goroutine, from 0, the host where the program began. It
// may be another by the time that it is looked at, unless the goroutine has called Migrate.
func Here() int {
	host, _, errno := syscall.RawSyscall(hereCall, 0, 0, 0)
	if errno != 0 {
		return 0
	}
	return int(host)
}

// Migrate moves the calling goroutine to a host and keeps it there, wired to its thread as by runtime.LockOSThread,
// until it calls Migrate(0). The error is syscall.EINVAL if there is no such host.
func Migrate(host int) error {
	runtime.LockOSThread()
	was := Here()
	_, _, errno := syscall.RawSyscall(migrateCall, uintptr(host), 0, 0)
	if errno == syscall.ENOSYS && host == 0 {
		errno = 0
	}
	if errno != 0 {
		runtime.UnlockOSThread()
		if errno == syscall.ENOSYS {
			errno = syscall.EINVAL
		}
		return errno
	}
	if was != 0 {
		runtime.UnlockOSThread() // of the Migrate that brought it there
	}
	if host == 0 {
		runtime.UnlockOSThread()
	}
	return nil
}

// Go starts a goroutine that executes f at a host. Where there is no such host it panics.
func Go(host int, f func()) {
	if host < 0 || host >= Hosts() {
		panic("remote: no such host")
	}
	go func() {
		if err := Migrate(host); err != nil {
			panic("remote: cannot migrate: " + err.Error())
		}
		defer Migrate(0)
		f()
	}()
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
