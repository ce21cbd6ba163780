//go:build !amd64

package lanes

func available() bool { return false }

func blocks(*[5][Width]uint32, *[Width]*byte, int) { panic("lanes: not on this processor") }
