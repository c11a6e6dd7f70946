package fusion

import (
	"math"
	"math/rand/v2"
	"strings"
	"testing"
)

func TestAllocateIsTheBest(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 5))
	for range 60 {
		var tables []Table
		for range 3 {
			row := func() []float64 {
				out := make([]float64, 1+rng.IntN(4))
				for i := range out {
					if out[i] = rng.Float64(); i > 0 && rng.IntN(5) == 0 {
						out[i] = math.Inf(1)
					}
				}
				return out
			}
			tables = append(tables, Table{
				Key: row(), Value: row(), KeyBytes: 1 + rng.Int64N(9), ValueBytes: 1 + rng.Int64N(9),
				Pairs: []func(k, v int) bool{nil, nil, func(k, v int) bool { return k%v == 0 || v%k == 0 }, func(k, v int) bool { return k == v }}[rng.IntN(4)],
			})
		}
		budget := 20 + rng.Int64N(60)
		for _, layout := range Layouts {
			least := math.Inf(1)
			eachChoice(tables, func(c []Choice) {
				for l := range c {
					if layout != FreeLayout && c[l].Key != c[l].Value || layout == UniformLayout && c[l] != c[0] || !fits(tables[l], c[l]) {
						return
					}
				}
				if b, cost := price(tables, c); b <= budget {
					least = min(least, cost)
				}
			})
			got, err := Allocate(tables, budget, layout)
			if err != nil {
				if !math.IsInf(least, 1) {
					t.Errorf("%s: %v, but %g is possible", layout, err, least)
				}
				continue
			}
			bytes, cost := price(tables, got)
			for l, c := range got {
				if !fits(tables[l], c) {
					t.Errorf("%s: layer %d has %+v, which do not go together", layout, l, c)
				}
			}
			if bytes > budget {
				t.Errorf("%s: %d bytes in a budget of %d", layout, bytes, budget)
			}
			near(t, string(layout), cost, least, 1e-12)
		}
	}
}

func fits(t Table, c Choice) bool { return t.Pairs == nil || t.Pairs(c.Key, c.Value) }

func eachChoice(tables []Table, f func([]Choice)) {
	c := make([]Choice, len(tables))
	var rec func(l int)
	rec = func(l int) {
		if l == len(tables) {
			f(c)
			return
		}
		for k := range tables[l].Key {
			for v := range tables[l].Value {
				c[l] = Choice{k + 1, v + 1}
				rec(l + 1)
			}
		}
	}
	rec(0)
}

func price(tables []Table, c []Choice) (bytes int64, cost float64) {
	for l, t := range tables {
		bytes += int64(c[l].Key)*t.KeyBytes + int64(c[l].Value)*t.ValueBytes
		cost += t.Key[c[l].Key-1] + t.Value[c[l].Value-1]
	}
	return bytes, cost
}

func TestAllocateRefuses(t *testing.T) {
	good := Table{Block: "b0", Key: []float64{1, 0}, Value: []float64{1, 0}, KeyBytes: 8, ValueBytes: 8}
	with := func(f func(*Table)) []Table { x := good; f(&x); return []Table{x} }
	for _, c := range []struct {
		tables []Table
		budget int64
		layout Layout
		want   string
	}{
		{nil, 9, FreeLayout, "no layers"},
		{[]Table{good}, 15, FreeLayout, "the fewest heads possible in the free layout take 16"},
		{[]Table{good}, 15, UniformLayout, "the fewest heads possible in the uniform layout take 16"},
		{[]Table{good}, 99, "wide", `layout "wide"; want one of [free coupled uniform]`},
		{with(func(t *Table) { t.Key = nil }), 99, FreeLayout, `block "b0": no costs of key heads`},
		{with(func(t *Table) { t.Value = []float64{math.NaN()} }), 99, FreeLayout, `block "b0": 1 value heads cost NaN`},
		{with(func(t *Table) { t.ValueBytes = 0 }), 99, FreeLayout, "a value head takes 0 bytes"},
		{with(func(t *Table) { t.Key = []float64{math.Inf(1)} }), 99, FreeLayout, "no number of heads is possible in the free layout"},
	} {
		if _, err := Allocate(c.tables, c.budget, c.layout); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("error %v, want %q", err, c.want)
		}
	}
}
