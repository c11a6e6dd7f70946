package graph

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
)

// copier copies ranges between files; it keeps the last source open.
type copier struct {
	from *mapped
	file *os.File
}

// stretch is how much is copied before the system is asked to begin writing it to the disk.
const stretch = 16 << 20

// copy appends a range at the current position of dst.
func (c *copier) copy(dst *os.File, src *source) error {
	if src.file.info == nil {
		b, err := src.bytes()
		if err == nil {
			_, err = dst.Write(b)
		}
		return err
	}
	if c.from != src.file {
		c.close()
		f, err := src.file.open()
		if err != nil {
			return err
		}
		c.from, c.file = src.file, f
	}
	for at, end := src.offset, src.offset+src.length; at < end; {
		data, hole := c.extent(at, end)
		if data > at {
			// A hole reads as zeros and stays a hole.
			if _, err := dst.Seek(data-at, io.SeekCurrent); err != nil {
				return err
			}
			if data == end {
				if err := extend(dst); err != nil {
					return err
				}
			}
		}
		if _, err := c.file.Seek(data, io.SeekStart); err != nil {
			return err
		}
		for at = data; at < hole; {
			// Between two files this is copy_file_range: the bytes stay in the kernel, or are shared on disk.
			n, err := io.Copy(dst, io.LimitReader(c.file, min(hole-at, stretch)))
			if err == nil && n == 0 {
				err = fmt.Errorf("%s ended before byte %d", src.file.path, hole)
			}
			if err != nil {
				return err
			}
			at += n
			writeback(dst)
		}
	}
	return nil
}

// extent returns the first stretch of data in a range of the source; data is end when the rest is a hole.
func (c *copier) extent(at, end int64) (data, hole int64) {
	if runtime.GOOS != "linux" {
		return at, end
	}
	const seekData, seekHole = 3, 4
	data, err := c.file.Seek(at, seekData)
	if err != nil {
		// Either nothing but a hole follows, or the file system knows no holes; reading zeros is right in both cases,
		// so only a range that is known to be a hole is skipped.
		if first, err := c.file.Seek(at, seekHole); err == nil && first == at {
			return end, end
		}
		return at, end
	}
	hole, err = c.file.Seek(data, seekHole)
	if err != nil {
		return at, end
	}
	return min(data, end), min(hole, end)
}

// extend gives a file the length of its current position.
func extend(f *os.File) error {
	at, err := f.Seek(0, io.SeekCurrent)
	if err != nil {
		return err
	}
	return f.Truncate(at)
}

func (c *copier) close() {
	if c.file != nil {
		c.file.Close()
	}
	c.from, c.file = nil, nil
}

// pending is a file that is being written and has not got its name yet. Where the system can, it has no name at all
// until it is complete, so that nothing is left of it even when the process is killed.
type pending struct {
	file     *os.File
	path     string // the name it will have
	temp     string // the name it has; empty for none
	replaces bool   // a file of the name exists
	named    bool   // it has its name
}

// create opens a new file in the folder of path.
func create(path string) (*pending, error) {
	_, err := os.Lstat(path)
	p := &pending{path: path, replaces: err == nil}
	if p.file, err = openNameless(filepath.Dir(path)); err == nil {
		return p, nil
	}
	err = p.underTemp(func(name string) (err error) {
		p.file, err = os.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o666)
		return err
	})
	if refused := (*fs.PathError)(nil); errors.As(err, &refused) {
		refused.Path = filepath.Dir(path) // people know nothing of the file's first name
	}
	return p, err
}

// underTemp calls f, which must not replace a file, with a free name in the folder of the path.
func (p *pending) underTemp(f func(name string) error) error {
	for i := 0; ; i++ {
		name := filepath.Join(filepath.Dir(p.path), fmt.Sprintf(".onnx-dha-%d-%d.tmp", os.Getpid(), i))
		err := f(name)
		if errors.Is(err, fs.ErrExist) && i < 1000 {
			continue
		}
		if err == nil {
			p.temp = name
		}
		return err
	}
}

// commit gives the file, which is synced, its name.
func (p *pending) commit() error {
	if p.temp == "" { // a link cannot replace a file, a rename can
		if err := p.underTemp(func(name string) error { return linkNameless(p.file, name) }); err != nil {
			return err
		}
	}
	if err := p.file.Close(); err != nil {
		return err
	}
	if err := os.Rename(p.temp, p.path); err != nil {
		return err
	}
	p.named = true
	if dir, err := os.Open(filepath.Dir(p.path)); err == nil {
		dir.Sync() // best effort: some file systems cannot sync a folder
		dir.Close()
	}
	return nil
}

// undo removes the file. One that has replaced another already stays: the other is gone.
func (p *pending) undo() {
	p.file.Close()
	switch {
	case p.named && !p.replaces:
		os.Remove(p.path)
	case !p.named && p.temp != "":
		os.Remove(p.temp)
	}
}
