//go:build unix

package graph

import (
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// release gives the pages of a mapped range back to the system's file cache. They are read again when they are touched,
// so that neighbours on the first and last page lose nothing.
func release(b []byte) {
	if len(b) == 0 {
		return
	}
	page := uintptr(os.Getpagesize())
	start := uintptr(unsafe.Pointer(unsafe.SliceData(b)))
	before := start % page
	whole := unsafe.Slice((*byte)(unsafe.Add(unsafe.Pointer(unsafe.SliceData(b)), -int(before))), uintptr(len(b))+before)
	// Advice may be refused; then the pages stay, which costs memory and nothing else.
	_ = unix.Madvise(whole, unix.MADV_DONTNEED)
}
