package graph

import (
	"errors"
	"fmt"
	"os"
	"sync"

	"github.com/edsrzf/mmap-go"
)

// mapped is a file that tensors point into. It is opened when somebody asks for bytes, so that a model with a file for
// each tensor does not hold thousands of them open.
type mapped struct {
	path string
	info os.FileInfo // as it was when the model was loaded; nil for a model in memory

	mu     sync.Mutex
	view   mmap.MMap
	data   []byte // of a model in memory
	closed bool
}

// source is a range of a mapped file. The range was checked against the file's size.
type source struct {
	file   *mapped
	offset int64
	length int64
}

// bytes returns the range from the memory map.
func (s source) bytes() ([]byte, error) {
	if s.length == 0 {
		return []byte{}, nil
	}
	all, err := s.file.bytes()
	if err != nil {
		return nil, err
	}
	return all[s.offset : s.offset+s.length : s.offset+s.length], nil
}

func (f *mapped) bytes() ([]byte, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case f.closed:
		return nil, errors.New("the model is closed")
	case f.info == nil:
		return f.data, nil
	case f.view != nil:
		return f.view, nil
	}
	file, err := f.open()
	if err != nil {
		return nil, err
	}
	defer file.Close()
	if f.view, err = mmap.MapRegion(file, int(f.info.Size()), mmap.RDONLY, 0, 0); err != nil {
		return nil, fmt.Errorf("mapping %s: %w", f.path, err)
	}
	return f.view, nil
}

// open opens the file for reading and refuses it when it is no longer what was loaded.
func (f *mapped) open() (*os.File, error) {
	file, err := os.Open(f.path)
	if err != nil {
		return nil, err
	}
	now, err := file.Stat()
	if err == nil && !(os.SameFile(f.info, now) && f.info.Size() == now.Size() && f.info.ModTime().Equal(now.ModTime())) {
		err = fmt.Errorf("%s has changed since the model was loaded", f.path)
	}
	if err != nil {
		file.Close()
		return nil, err
	}
	return file, nil
}

func (f *mapped) close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed = true
	f.data = nil
	if f.view == nil {
		return nil
	}
	view := f.view
	f.view = nil
	return view.Unmap()
}
