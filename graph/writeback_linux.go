package graph

import (
	"os"

	"golang.org/x/sys/unix"
)

// writeback lets the system begin to write to the disk what was written to the file, so that the disk is at work while
// more is copied and Sync has little left to wait for. It is advice; Sync alone says whether it went well.
func writeback(f *os.File) {
	_ = unix.SyncFileRange(int(f.Fd()), 0, 0, unix.SYNC_FILE_RANGE_WRITE)
}
