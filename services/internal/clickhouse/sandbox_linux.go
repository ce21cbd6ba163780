//go:build linux && !noengine

package clickhouse

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// sandboxedEnv marks the second run of the host, inside the sandbox.
const sandboxedEnv = "TRANSFERLAB_CLICKHOUSE_SANDBOXED"

// minLandlockABI is the first version that can allow renames and links between
// directories, without which the engine cannot mutate its tables.
const minLandlockABI = 2

const (
	landlockRead = unix.LANDLOCK_ACCESS_FS_READ_FILE | unix.LANDLOCK_ACCESS_FS_READ_DIR
	landlockExec = landlockRead | unix.LANDLOCK_ACCESS_FS_EXECUTE
	// What a single file's rule may hold; the kernel refuses the rest.
	landlockFile = unix.LANDLOCK_ACCESS_FS_READ_FILE | unix.LANDLOCK_ACCESS_FS_WRITE_FILE |
		unix.LANDLOCK_ACCESS_FS_EXECUTE | unix.LANDLOCK_ACCESS_FS_TRUNCATE
)

// enterSandbox confines this process to the engine's own files and replaces it
// by a new run of itself, which inherits the confinement in all of its threads.
// It returns only if that is impossible.
//
// Without it any SQL user, the read-only one included, could read every file
// the lab's owner can: the engine thinks it is a local tool and lets the scalar
// function file() open any path, whatever the grants say. For the same reason
// it may neither run programs nor open TCP connections.
func enterSandbox(a hostArgs) error {
	abi, _, errno := syscall.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	if errno != 0 {
		return fmt.Errorf("this kernel has no Landlock: %w", errno)
	}
	if abi < minLandlockABI {
		return fmt.Errorf("this kernel's Landlock is version %d, %d is needed", abi, minLandlockABI)
	}
	// Confinement and parent-death signal belong to a thread; the one that
	// calls exec passes both on to the whole new process.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	ruleset, err := newRuleset(int(abi), a)
	if err != nil {
		return err
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("set no_new_privs: %w", err)
	}
	dropCapabilities()
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0); err != nil {
		return fmt.Errorf("set the parent-death signal: %w", err)
	}
	if _, _, errno := syscall.Syscall(unix.SYS_LANDLOCK_RESTRICT_SELF, uintptr(ruleset), 0, 0); errno != 0 {
		return fmt.Errorf("enter the sandbox: %w", errno)
	}
	argv := append([]string{os.Args[0]}, a.list()...)
	return fmt.Errorf("re-execute inside the sandbox: %w", syscall.Exec("/proc/self/exe", argv, append(os.Environ(), sandboxedEnv+"=1")))
}

// dropCapabilities leaves a host that root started the rights over files, which
// the sandbox bounds, and none with which to look into other processes. Without
// privilege it fails, and has nothing to drop.
func dropCapabilities() {
	_ = unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
	for c := uintptr(0); c <= unix.CAP_LAST_CAP; c++ {
		switch c {
		case unix.CAP_CHOWN, unix.CAP_DAC_OVERRIDE, unix.CAP_DAC_READ_SEARCH, unix.CAP_FOWNER:
		default:
			_ = unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0)
		}
	}
}

func newRuleset(abi int, a hostArgs) (int, error) {
	fs := uint64(unix.LANDLOCK_ACCESS_FS_MAKE_SYM<<1 - 1) // everything of version 1
	fs |= unix.LANDLOCK_ACCESS_FS_REFER
	attr := unix.LandlockRulesetAttr{}
	if abi >= 3 {
		fs |= unix.LANDLOCK_ACCESS_FS_TRUNCATE
	}
	if abi >= 4 {
		attr.Handled_access_net = unix.LANDLOCK_ACCESS_NET_CONNECT_TCP
	}
	attr.Handled_access_fs = fs
	size := unsafe.Sizeof(attr.Handled_access_fs)
	if abi >= 4 {
		size += unsafe.Sizeof(attr.Handled_access_net)
	}
	fd, _, errno := syscall.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, uintptr(unsafe.Pointer(&attr)), size, 0)
	if errno != 0 {
		return 0, fmt.Errorf("create the sandbox: %w", errno)
	}
	ruleset := int(fd)

	lock := filepath.Join(a.dir, lockName)
	f, err := os.OpenFile(lock, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return 0, err
	}
	_ = f.Close()
	for _, rule := range []struct {
		path     string
		access   uint64
		optional bool
	}{
		{path: filepath.Join(a.dir, storeName), access: fs &^ unix.LANDLOCK_ACCESS_FS_EXECUTE},
		{path: filepath.Join(a.dir, logDirName), access: fs &^ unix.LANDLOCK_ACCESS_FS_EXECUTE},
		{path: filepath.Join(a.dir, configName), access: landlockRead},
		{path: filepath.Join(a.dir, usersName), access: landlockRead},
		{path: lock, access: landlockRead | unix.LANDLOCK_ACCESS_FS_WRITE_FILE},
		{path: a.library, access: landlockExec},
		{path: "/proc/self/exe", access: landlockExec},
		{path: "/proc", access: landlockRead},
		{path: "/dev/null", access: landlockRead | unix.LANDLOCK_ACCESS_FS_WRITE_FILE},
		{path: "/dev/urandom", access: landlockRead},
		{path: "/dev/random", access: landlockRead, optional: true},
		{path: "/sys", access: landlockRead, optional: true},
		// The C library and what it reads: name lookups and time zones.
		{path: "/lib", access: landlockExec, optional: true},
		{path: "/lib64", access: landlockExec, optional: true},
		{path: "/usr/lib", access: landlockExec, optional: true},
		{path: "/usr/lib64", access: landlockExec, optional: true},
		{path: "/usr/share/zoneinfo", access: landlockRead, optional: true},
		{path: "/etc/ld.so.cache", access: landlockRead, optional: true},
		{path: "/etc/localtime", access: landlockRead, optional: true},
		{path: "/etc/timezone", access: landlockRead, optional: true},
		{path: "/etc/hosts", access: landlockRead, optional: true},
		{path: "/etc/host.conf", access: landlockRead, optional: true},
		{path: "/etc/resolv.conf", access: landlockRead, optional: true},
		{path: "/etc/nsswitch.conf", access: landlockRead, optional: true},
		{path: "/etc/gai.conf", access: landlockRead, optional: true},
	} {
		err := addRule(ruleset, rule.path, rule.access&fs)
		if err != nil && (!rule.optional || !errors.Is(err, unix.ENOENT)) {
			return 0, fmt.Errorf("allow %s in the sandbox: %w", rule.path, err)
		}
	}
	return ruleset, nil
}

func addRule(ruleset int, path string, access uint64) error {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		access &= landlockFile
	}
	rule := unix.LandlockPathBeneathAttr{Allowed_access: access, Parent_fd: int32(fd)}
	if _, _, errno := syscall.Syscall6(unix.SYS_LANDLOCK_ADD_RULE, uintptr(ruleset), unix.LANDLOCK_RULE_PATH_BENEATH, uintptr(unsafe.Pointer(&rule)), 0, 0, 0); errno != 0 {
		return errno
	}
	return nil
}
