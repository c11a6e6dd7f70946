//go:build linux

package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"slices"
	"syscall"
	"testing"
	"time"

	"onnx-dha/fusion"
)

// The benchmarks in this file run the program itself on models of gigabytes, each run in a process of its own, and
// report how long it took and how much memory it held. docs/benchmarks.md has the figures and says how to read them.

// heavy takes 2.5 GB, and what is left of it after the rewrite is over the 2 GiB that one protobuf message may have too.
// Every head has keys and values of its own, so that as much of the model as possible is computed anew, and weights are
// float32.
var heavy = large{layers: 32, heads: 16, kvHeads: 16, headDim: 64, model: 1024, ffn: 2816, vocab: 100352}

// onPaper are models of the sizes of Llama 2 7B and 70B, without a byte of weights on the disk: inspect reads none.
var onPaper = []struct {
	name string
	large
}{
	{"7B", large{layers: 32, heads: 32, kvHeads: 32, headDim: 128, model: 4096, ffn: 11008, vocab: 32000, half: true}},
	{"70B", large{layers: 80, heads: 64, kvHeads: 8, headDim: 128, model: 8192, ffn: 28672, vocab: 32000, half: true}},
}

// reserve is the room that has to be free: for a model and a copy or rewrite of it, and as much again.
const reserve = 10e9

// workshop is a folder for a benchmark's files.
type workshop struct {
	*testing.B
	dir, program string
}

func open(b *testing.B) workshop {
	b.Helper()
	if testing.Short() {
		b.Skip("writes gigabytes")
	}
	w := workshop{b, b.TempDir(), ""}
	var fs syscall.Statfs_t
	if err := syscall.Statfs(w.dir, &fs); err != nil {
		b.Fatal(err)
	}
	if free := float64(fs.Bavail) * float64(fs.Bsize); free < reserve {
		b.Skipf("%s has %.1f GB free, want %.0f: set TMPDIR to a folder with more room", w.dir, free/1e9, reserve/1e9)
	}
	w.program = w.path(program)
	if out, err := exec.Command("go", "build", "-trimpath", "-o", w.program, ".").CombinedOutput(); err != nil {
		b.Fatalf("go build: %v\n%s", err, out)
	}
	if floor := w.run("true"); floor.peak > 60e6 {
		b.Fatalf("the least that can be measured is %d bytes, too many", floor.peak)
	}
	return w
}

func (w workshop) path(name string) string { return filepath.Join(w.dir, name) }

// cost is what one run of a command took.
type cost struct {
	seconds float64
	peak    int64 // resident memory at its highest, in bytes
}

// run runs a command that has to succeed. What earlier ones have left to be written to the disk is written first, and this
// process gives back what memory it can and forgets its own peak: Linux counts it as the peak of what is started from it.
func (w workshop) run(name string, args ...string) cost {
	w.Helper()
	syscall.Sync()
	debug.FreeOSMemory()
	if err := os.WriteFile("/proc/self/clear_refs", []byte("5"), 0); err != nil {
		w.Fatal(err)
	}
	cmd := exec.Command(name, args...)
	start := time.Now()
	out, err := cmd.CombinedOutput()
	took := time.Since(start)
	if err != nil {
		w.Fatalf("%v: %v\n%s", cmd, err, out)
	}
	return cost{took.Seconds(), cmd.ProcessState.SysUsage().(*syscall.Rusage).Maxrss << 10}
}

// BenchmarkInspect measures inspect on models too large for most disks.
func BenchmarkInspect(b *testing.B) {
	w := open(b)
	for _, m := range onPaper {
		b.Run(m.name, func(b *testing.B) {
			w := workshop{b, w.dir, w.program}
			path := w.path(m.name + ".onnx")
			if err := m.write(path, hollow); err != nil {
				b.Fatal(err)
			}
			var costs []cost
			for b.Loop() {
				costs = append(costs, w.run(w.program, "inspect", path))
			}
			summarise(b, "inspect", costs, nil)
		})
	}
}

// BenchmarkExternal measures what the program does with a model whose weights are in a file beside it.
func BenchmarkExternal(b *testing.B) {
	rounds(b, external, []mode{
		{"inspect", []string{"inspect"}, ""},
		{"rewrite", []string{"rewrite"}, "bare.yaml"},
		{"share", []string{"rewrite", "--weights", "share"}, "bare.yaml"},
		{"share-checked", []string{"rewrite", "--weights", "share"}, "checked.yaml"},
	})
}

// BenchmarkInlined does so for a model of more than 2 GiB with its weights inside, which a rewrite takes out of it.
func BenchmarkInlined(b *testing.B) {
	rounds(b, inlined, []mode{
		{"inspect", []string{"inspect"}, ""},
		{"rewrite", []string{"rewrite"}, "bare.yaml"},
	})
}

// mode is a way to call the program.
type mode struct {
	name   string
	args   []string
	config string // that it writes a model by; checked.yaml has a fingerprint, for which the attention weights are hashed
}

// rounds measures in turn, round after round, cp of the model's files and every mode. Both end with their files on the
// disk: cp is followed by sync, rewrite syncs by itself.
func rounds(b *testing.B, s storage, modes []mode) {
	w := open(b)
	model, out, copies := w.path("model.onnx"), w.path("out.onnx"), w.path("copies")
	if err := heavy.write(model, s); err != nil {
		b.Fatal(err)
	}
	w.configure(model)
	files, err := filepath.Glob(model + "*")
	if err != nil {
		b.Fatal(err)
	}
	costs := map[string][]cost{}
	for b.Loop() {
		if err := os.Mkdir(copies, 0o777); err != nil {
			b.Fatal(err)
		}
		cp := slices.Concat([]string{"-c", `to=$1; shift; cp "$@" "$to" && sync "$to"/*`, "sh", copies}, files)
		costs["cp"] = append(costs["cp"], w.run("sh", cp...))
		if err := os.RemoveAll(copies); err != nil {
			b.Fatal(err)
		}
		for _, m := range modes {
			args := slices.Concat(m.args, []string{model})
			if m.config != "" {
				args = append(args, "--config", w.path(m.config), "-o", out)
			}
			costs[m.name] = append(costs[m.name], w.run(w.program, args...))
			os.Remove(out)
			os.Remove(out + ".data")
		}
	}
	summarise(b, "cp", costs["cp"], nil)
	for _, m := range modes {
		base := costs["cp"]
		if m.config == "" { // it copies nothing
			base = nil
		}
		summarise(b, m.name, costs[m.name], base)
	}
}

// configure writes configurations that leave half of the key heads and a quarter of the value heads.
func (w workshop) configure(model string) {
	checked := w.path("checked.yaml")
	w.run(w.program, "init", model, "--key", fmt.Sprint(heavy.kvHeads/2), "--value", fmt.Sprint(heavy.kvHeads/4), "-o", checked)
	cfg, err := fusion.Load(checked)
	if err != nil {
		w.Fatal(err)
	}
	cfg.Fingerprint = ""
	bare, err := cfg.Marshal()
	if err != nil {
		w.Fatal(err)
	}
	if err := os.WriteFile(w.path("bare.yaml"), bare, 0o666); err != nil {
		w.Fatal(err)
	}
}

// summarise gives the median and the least of the seconds, the highest peak in megabytes, and where there is a base, the
// time over the base's: the median over the rounds, and the best round over the best of the base.
func summarise(b *testing.B, name string, costs, base []cost) {
	b.ReportMetric(0, "ns/op") // of the whole loop: says nothing
	var seconds, ratios, bases []float64
	peak := int64(0)
	for i, c := range costs {
		seconds = append(seconds, c.seconds)
		peak = max(peak, c.peak)
		if base != nil {
			ratios = append(ratios, c.seconds/base[i].seconds)
			bases = append(bases, base[i].seconds)
		}
	}
	b.ReportMetric(median(seconds), name+"-s")
	b.ReportMetric(slices.Min(seconds), name+"-best-s")
	if name != "cp" {
		b.ReportMetric(float64(peak)/1e6, name+"-MB")
	}
	if base != nil {
		b.ReportMetric(median(ratios), name+"/cp")
		b.ReportMetric(slices.Min(seconds)/slices.Min(bases), name+"/cp-best")
	}
}

func median(x []float64) float64 {
	slices.Sort(x)
	return (x[(len(x)-1)/2] + x[len(x)/2]) / 2
}
