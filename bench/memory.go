package bench

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"

	"onnx-dha/ort"
)

// release gives memory that is no longer used back to the system.
func release() {
	runtime.GC() // lets go of what only finalizers held
	debug.FreeOSMemory()
	ort.Trim()
}

// measurePeak runs the largest of the cases alone, notes the highest memory that it took, and closes the model.
func (m *Model) measurePeak(ctx context.Context, q Request) error {
	// The session is opened anew, so that what it holds by itself counts.
	if err := m.m.Close(); err != nil {
		return err
	}
	release()
	base := resetPeak()
	again, err := open(m.Path, q)
	if err != nil {
		return err
	}
	m.m = again.m
	defer func() {
		m.m.Close()
		m.m = nil
		release()
	}()
	once := q
	once.Warmup, once.Steps = 1, 1
	for _, prefill := range []bool{true, false} {
		largest := Case{}
		for _, c := range q.cases() {
			if c.Prefill() == prefill && c.Fill == 1 && c.Batch*(c.Length+c.Prompt) > largest.Batch*(largest.Length+largest.Prompt) {
				largest = c
			}
		}
		if largest.Batch == 0 || (&Report{Models: []Model{*m}}).shortage(&largest, once) != "" {
			continue
		}
		r, why, err := m.start(&largest, once)
		if err != nil {
			return err
		}
		if why != "" {
			continue
		}
		_, err = r.round(ctx)
		r.loop.Close()
		if err != nil {
			return err
		}
	}
	if peak := statusBytes("VmHWM"); peak > base && base > 0 {
		m.Peak = peak - base
	}
	return nil
}

// resetPeak makes the system forget the process's highest memory so far and returns what it holds now, 0 where there is
// no such thing.
func resetPeak() int64 {
	if os.WriteFile("/proc/self/clear_refs", []byte("5"), 0) != nil {
		return 0
	}
	return statusBytes("VmRSS")
}

// statusBytes reads an entry of what Linux tells of this process, 0 where it does not.
func statusBytes(key string) int64 { return kilobytes("/proc/self/status", key) }

// kilobytes reads an entry of a file of lines such as "VmRSS:  120 kB".
func kilobytes(file, key string) int64 {
	data, err := os.ReadFile(file)
	if err != nil {
		return 0
	}
	for line := range bytes.Lines(data) {
		if rest, ok := strings.CutPrefix(string(line), key+":"); ok {
			n, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
			if err != nil {
				return 0
			}
			return n << 10
		}
	}
	return 0
}

// shortage says whether the caches of all models do not fit the memory that is free, empty when they do or when the system
// does not tell.
func (r *Report) shortage(c *Case, q Request) string {
	need := int64(0)
	for _, m := range r.Models {
		if m.Static {
			need += m.Position * int64(c.Batch) * int64(max(c.capacity(q), c.Prompt))
			continue
		}
		need += 2 * m.Position * int64(c.Batch) * int64(c.Length+c.Prompt)
	}
	free := kilobytes("/proc/meminfo", "MemAvailable")
	if free > 0 && need > free/10*9 {
		return fmt.Sprintf("caches of all models take %.1f GB, and %.1f GB of memory are free", float64(need)/1e9, float64(free)/1e9)
	}
	return ""
}
