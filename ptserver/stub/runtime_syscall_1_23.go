//go:build linux && (amd64 || arm64)

package runtime

import "internal/runtime/syscall" // where Go 1.23 to 1.25 have it

// remoteSyscall6 makes a system call that the scheduler is not told of. What its arguments point to is kept on the
// heap until it returns.
//
//go:nosplit
//go:uintptrescapes
func remoteSyscall6(number, a1, a2, a3, a4, a5, a6 uintptr) (r1, r2, errno uintptr) {
	return syscall.Syscall6(number, a1, a2, a3, a4, a5, a6)
}
