//go:build linux && (amd64 || arm64)

// The stub of a split runtime. This file is part of package runtime only in binaries that "ptserver build" makes;
// it joins the package through "go build -overlay" and replaces nothing. Its init function is package runtime's own
// and so comes before the init function of every other package.
//
// The stub speaks to its runtime server through the stub host, the process that executes this program. It does so
// by hypercalls: system call numbers that no kernel knows, which the stub host's seccomp filter hands to the server.
// A kernel that nobody stands in front of answers ENOSYS, and that is how the stub knows that it has no server.

package runtime

import "unsafe"

// The hypercalls' numbers and layouts: ptserver/stub/hypercalls.py says the same, and a test compares the two.
const (
	remoteHello = 0xfff0 // (request, its length, message buffer, its length): 0, or an errno and why
	remoteWatch = 0xfff1 // (message buffer, its length): returns once the connection is lost

	remoteMessageBytes = 1024 // of a message buffer; a message in it ends at the first zero byte
)

const (
	remoteEINTR  = 4
	remoteENOSYS = 38
)

// remoteMessage is where HELLO's and then WATCH's message is written: static, for WATCH's thread has no P and so
// may not allocate.
var remoteMessage [remoteMessageBytes]byte

func init() {
	flag := remoteTakeFlag()
	switch remoteAskServer() {
	case 0:
		systemstack(func() {
			newm(remoteWatchThread, nil, -1)
		})
	case remoteENOSYS:
		remoteStartHost(flag) // does not return
	default:
		panic(remoteMessageText("remote: the runtime server refused this program"))
	}
}

// remoteAskServer says HELLO and returns its errno. As the server may take its time, the scheduler is told of the
// call: it would interrupt a goroutine that seems to run for too long.
//
//go:nosplit
func remoteAskServer() uintptr {
	request := remoteMarker // with the marker as the request the linker cannot drop it
	entersyscall()
	errno := remoteHypercall(remoteHello, uintptr(unsafe.Pointer(unsafe.StringData(request))), uintptr(len(request)))
	exitsyscall()
	return errno
}

// remoteHypercall makes a hypercall whose message buffer is remoteMessage: HELLO with a request, WATCH without.
// A signal handler that ran meanwhile does not end it.
//
//go:nosplit
func remoteHypercall(number, request, requestBytes uintptr) uintptr {
	buffer := uintptr(unsafe.Pointer(&remoteMessage))
	for {
		var errno uintptr
		if number == remoteHello {
			_, _, errno = remoteSyscall6(number, request, requestBytes, buffer, remoteMessageBytes, 0, 0)
		} else {
			_, _, errno = remoteSyscall6(number, buffer, remoteMessageBytes, 0, 0, 0, 0)
		}
		if errno != remoteEINTR {
			return errno
		}
	}
}

// remoteMessageText returns the message that the stub host wrote, or another if it wrote none.
//
//go:nosplit
func remoteMessageText(otherwise string) string {
	remoteMessage[remoteMessageBytes-1] = 0
	if remoteMessage[0] == 0 {
		return otherwise
	}
	return gostringnocopy(&remoteMessage[0])
}

// remoteWatchThread waits on a thread of its own until the connection to the server is lost, and then ends the
// program as a panic does.
//
// It is an M without a P that never runs a goroutine, as sysmon and the template thread are, and counts as they do:
// the deadlock detector does not take it for work in progress. So there is no goroutine to be seen in a traceback or
// counted by NumGoroutine, no other goroutine's number changes, and stopping the world need not wait for it.
// Having no P it must not allocate, and no write barrier may be in it or below it.
//
//go:nowritebarrierrec
func remoteWatchThread() {
	lock(&sched.lock)
	sched.nmsys++
	checkdead()
	unlock(&sched.lock)

	errno := remoteHypercall(remoteWatch, 0, 0)
	reason := "no reason given"
	if errno == remoteENOSYS {
		// HELLO was answered: whoever stood in front of the kernel then does so no more.
		reason = "the stub host is gone"
	}
	reason = remoteMessageText(reason)

	// As fatal does it: on the system stack, with all user goroutines (this thread has none to show first),
	// without the runtime's own frames unless GOTRACEBACK asks for them, exit status 2.
	printlock()
	print("panic: remote: lost connection to runtime server: ", reason, "\n")
	fatalthrow(throwTypeUser)
}
