package lanes

import "golang.org/x/sys/cpu"

// available reports whether this processor has what blocks needs.
func available() bool { return cpu.X86.HasAVX512F && cpu.X86.HasAVX512BW }

// blocks hashes n blocks of 64 bytes of every lane.
//
//go:noescape
func blocks(state *[5][Width]uint32, data *[Width]*byte, n int)
