//go:build linux && (amd64 || arm64)

// How a program with the stub finds itself a stub host when it was started without one: it takes the server's address
// from its arguments or its environment and replaces itself by "ptserver run" on its own file.

package runtime

import (
	"internal/bytealg"
	"internal/goarch"
	"unsafe"
)

const (
	remoteFlag     = "-go.remote="
	remoteVariable = "GO_REMOTE="

	remoteExecve     = 59*goarch.IsAmd64 + 221*goarch.IsArm64
	remoteReadlinkat = 267*goarch.IsAmd64 + 78*goarch.IsArm64
	remoteAtFdcwd    = -100

	remoteENOENT  = 2
	remoteEACCES  = 13
	remoteENOTDIR = 20

	remotePathBytes   = 4096 // the kernel's PATH_MAX
	remoteDefaultPath = "/usr/local/bin:/usr/bin:/bin"
)

// remoteTakeFlag removes -go.remote=ADDR and --go.remote=ADDR from the arguments before anyone sees them and returns
// the last of them with its ADDR, or "". An argument after "--" is the program's own.
func remoteTakeFlag() (flag string) {
	kept := argslice[:0]
	for i, arg := range argslice {
		if i > 0 && arg == "--" {
			kept = append(kept, argslice[i:]...)
			break
		}
		if i > 0 && (remoteHasPrefix(arg, remoteFlag) || remoteHasPrefix(arg, "-"+remoteFlag)) {
			flag = arg
			continue
		}
		kept = append(kept, arg)
	}
	argslice = kept
	return flag
}

// remoteStartHost replaces this process by a stub host that runs its file under the server that the flag or else
// GO_REMOTE names. It panics when neither names one or the stub host cannot be started.
func remoteStartHost(flag string) {
	addr := remoteValue(flag)
	if flag != "" && addr == "" {
		panic("remote: -go.remote names no runtime server: give HOST:PORT or unix:PATH")
	}
	if addr == "" {
		addr = remoteValue(remoteSetting(remoteVariable))
	}
	if addr == "" {
		panic("remote binary requires runtime server")
	}
	if isSecureMode() {
		panic("remote: a set-uid program does not start a stub host: its user could name any")
	}

	name := ""
	arguments := argslice
	if len(argslice) > 0 {
		name, arguments = argslice[0], argslice[1:]
	}
	argv := []*byte{
		remoteCString("ptserver"), remoteCString("run"), remoteCString("--stub"),
		remoteCString("--argv0"), remoteCString(name), remoteCString("--server"), remoteCString(addr),
		remoteCString("--"), remoteCString(remoteExecutable()),
	}
	for _, argument := range arguments {
		argv = append(argv, remoteCString(argument))
	}
	argv = append(argv, nil)

	envp := []*byte{}
	for _, setting := range envs {
		if !remoteHasPrefix(setting, remoteVariable) {
			envp = append(envp, remoteCString(setting))
		}
	}
	envp = append(envp, nil)

	syscall_runtime_BeforeExec() // no thread may be on its way to life while exec ends them all
	failure := remoteExecHost(argv, envp)
	syscall_runtime_AfterExec()
	panic(failure)
}

// remoteExecHost executes the ptserver that the variable PTSERVER names, or else the first on PATH. If it returns,
// it returns why there is none.
func remoteExecHost(argv, envp []*byte) string {
	host := remoteValue(remoteSetting("PTSERVER="))
	if host == "" {
		host = "ptserver"
	}
	if bytealg.IndexByteString(host, '/') >= 0 {
		return remoteExecFailed(host, remoteExec(host, argv, envp))
	}

	path := remoteDefaultPath
	if setting := remoteSetting("PATH="); setting != "" {
		path = remoteValue(setting)
	}
	denied := ""
	for start, i := 0, 0; i <= len(path); i++ {
		if i < len(path) && path[i] != ':' {
			continue
		}
		candidate := path[start:i] + "/" + host
		if start == i {
			candidate = "./" + host // an empty element means the working directory
		}
		start = i + 1
		switch errno := remoteExec(candidate, argv, envp); errno {
		case remoteENOENT, remoteENOTDIR:
		case remoteEACCES:
			denied = candidate
		default:
			return remoteExecFailed(candidate, errno)
		}
	}
	if denied != "" {
		return remoteExecFailed(denied, remoteEACCES)
	}
	return "remote: no stub host: " + host + " is not on PATH; install ptserver or set PTSERVER to its path"
}

// remoteExec executes file and returns only to say why it cannot.
func remoteExec(file string, argv, envp []*byte) (errno uintptr) {
	_, _, errno = remoteSyscall6(remoteExecve, uintptr(unsafe.Pointer(remoteCString(file))),
		uintptr(unsafe.Pointer(&argv[0])), uintptr(unsafe.Pointer(&envp[0])), 0, 0, 0)
	return errno
}

func remoteExecFailed(file string, errno uintptr) string {
	why := "errno " + string(itoa(make([]byte, 20), uint64(errno)))
	switch errno {
	case remoteENOENT, remoteENOTDIR:
		why = "no such file"
	case remoteEACCES:
		why = "not executable"
	}
	return "remote: cannot start the stub host " + file + ": " + why + "; set PTSERVER to the path of ptserver"
}

// remoteExecutable returns the path of this program's file.
func remoteExecutable() string {
	buffer := make([]byte, remotePathBytes)
	directory := remoteAtFdcwd // a variable, for the constant fits no uintptr
	n, _, errno := remoteSyscall6(remoteReadlinkat, uintptr(directory),
		uintptr(unsafe.Pointer(remoteCString("/proc/self/exe"))),
		uintptr(unsafe.Pointer(&buffer[0])), uintptr(len(buffer)), 0, 0)
	if errno != 0 || n >= uintptr(len(buffer)) {
		panic("remote: cannot read /proc/self/exe, which names the program that the stub host would run")
	}
	return string(buffer[:n])
}

// remoteSetting returns the first setting "NAME=value" of the environment that starts with prefix, or "".
func remoteSetting(prefix string) string {
	for _, setting := range envs {
		if remoteHasPrefix(setting, prefix) {
			return setting
		}
	}
	return ""
}

// remoteValue returns VALUE of "NAME=VALUE", or "" of "".
func remoteValue(setting string) string {
	return setting[bytealg.IndexByteString(setting, '=')+1:]
}

func remoteHasPrefix(s, prefix string) bool {
	return len(s) >= len(prefix) && s[:len(prefix)] == prefix
}

func remoteCString(s string) *byte {
	bytes := make([]byte, len(s)+1)
	copy(bytes, s)
	return &bytes[0]
}
