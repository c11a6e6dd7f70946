package learn

import (
	"context"
	"path/filepath"
	"testing"
	"time"

	"onnx-dha/ort"
	"onnx-dha/testmodels"
)

// BenchmarkStatistics measures what the statistics of all blocks cost over a plain forward pass of the same tokens: the
// ratio "×plain" is to be at most 1.5. Runs of the two alternate, so that both meet the same load of the machine.
func BenchmarkStatistics(b *testing.B) {
	lib, err := ort.Find("")
	if err == nil {
		err = ort.Open(lib)
	}
	if err != nil {
		b.Skip(err)
	}
	dir, err := testmodels.CharLlama()
	if err != nil {
		b.Skip(err)
	}
	l, err := OpenLab(filepath.Join(dir, "model.onnx"), ort.Options{})
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	const length = 256
	batches, err := l.Batches(tokens(16, length, 65, 1), 1)
	if err != nil {
		b.Fatal(err)
	}
	plain, err := ort.NewSession(l.Path, ort.Options{})
	if err != nil {
		b.Fatal(err)
	}
	defer plain.Close()
	k, err := l.calibration(0, length, l.Open()...)
	if err != nil {
		b.Fatal(err)
	}
	defer k.close()
	forward := func() error {
		for _, batch := range batches {
			if _, err := plain.Run(context.Background(), batch.Feeds); err != nil {
				return err
			}
		}
		return nil
	}
	statistics := func() error {
		_, err := k.collect(context.Background(), batches, 1, nil, func() {})
		return err
	}
	var spent [2]time.Duration
	for n := 0; b.Loop(); n++ {
		for i, f := range []func() error{forward, statistics} {
			start := time.Now()
			if err := f(); err != nil {
				b.Fatal(err)
			}
			if n > 0 { // the first runs fill the runtime's arenas
				spent[i] += time.Since(start)
			}
		}
	}
	if spent[0] > 0 {
		b.ReportMetric(spent[1].Seconds()/spent[0].Seconds(), "×plain")
	}
}
