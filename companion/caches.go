// Package companion writes the files that stand beside a model for the runtimes that people run it in: what a rewrite
// changes in config.json and genai_config.json, and which runtimes can take the result.
package companion

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"

	"onnx-dha/graph"
	"onnx-dha/verify"
)

// Cache is one cache of a model as runtimes see it.
type Cache struct {
	Past, Present string
	Layer         int  // the number in its name; -1 without one
	Value         bool // it holds values, else keys
	Both          bool // it holds keys and values, [2, batch, heads, positions, dim]
	// Heads and Dim are the sizes of those axes of [batch, heads, positions, dim]; 0 where the model does not fix them, or the
	// cache has other axes.
	Heads, Dim int64
	// Batch is the symbol of the axis that counts sequences.
	Batch string
	// Static is whether past and present are one buffer.
	Static bool
}

// Interface is what a runtime has to know of a model's inputs and outputs.
type Interface struct {
	Caches []Cache // those that get longer
	Cross  []Cache // those of cross attention, which stay as the first step has made them
	Inputs []string
	// Fused is whether all caches are updated by the runtime's own attention operator, which takes past and present from one
	// buffer.
	Fused  bool
	Logits string
}

var (
	layerNumber = regexp.MustCompile(`\d+`)
	valueName   = regexp.MustCompile(`(?i)(^|[._/])v(al(ue)?s?)?([._/]|$|\d)`)
	bothNames   = regexp.MustCompile(`(?i)key_values?`)
	crossName   = regexp.MustCompile(`(?i)^past.*(encoder|cross)`)
)

// Describe reads the interface of a model.
func Describe(m *graph.Model) (*Interface, error) {
	s, err := verify.Describe(m)
	if err != nil {
		return nil, err
	}
	out := &Interface{Logits: s.Logits}
	for _, in := range s.Inputs {
		out.Inputs = append(out.Inputs, in.Name)
	}
	places := slices.ContainsFunc(s.Inputs, func(in verify.Input) bool { return in.Role == verify.Places })
	fused := 0
	for _, c := range s.Caches {
		i := slices.IndexFunc(s.Inputs, func(in verify.Input) bool { return in.Name == c.Past })
		x := describe(s.Inputs[i], c, places)
		if !c.Grows {
			out.Cross = append(out.Cross, x)
			continue
		}
		if s.SharesBuffer(m.Graph, c) {
			fused++
		}
		out.Caches = append(out.Caches, x)
	}
	// A decoder that is not there for the first step takes them and gives none.
	for _, in := range s.Inputs {
		given := slices.ContainsFunc(s.Caches, func(c verify.CachePair) bool { return c.Past == in.Name })
		if !given && len(in.Dims) == 4 && crossName.MatchString(in.Name) {
			out.Cross = append(out.Cross, describe(in, verify.CachePair{Past: in.Name, SeqAxis: 2}, false))
		}
	}
	out.Fused = fused > 0 && fused == len(out.Caches)
	return out, nil
}

// describe reads a cache off its input.
func describe(in verify.Input, c verify.CachePair, static bool) Cache {
	x := Cache{Past: c.Past, Present: c.Present, Layer: -1, Value: valueName.MatchString(bothNames.ReplaceAllString(c.Past, "")), Static: static}
	if n, err := strconv.Atoi(layerNumber.FindString(c.Past)); err == nil {
		x.Layer = n
	}
	d := in.Dims
	if len(d) == 5 && c.SeqAxis == 3 {
		if two, _ := d[0].Const(); two == 2 {
			x.Both, d = true, d[1:]
		}
	}
	if len(d) == 4 && c.SeqAxis == len(in.Dims)-2 {
		x.Heads, _ = d[1].Const()
		x.Dim, _ = d[3].Const()
		if symbols := d[0].Symbols(); len(symbols) == 1 {
			x.Batch = symbols[0]
		}
	}
	return x
}

// Heads says how many heads the caches hold, by layer: keys and values.
func (f *Interface) Heads() (keys, values []int64) {
	for _, c := range f.Caches {
		if c.Value || c.Both {
			values = append(values, c.Heads)
		}
		if !c.Value || c.Both {
			keys = append(keys, c.Heads)
		}
	}
	return keys, values
}

// Uniform returns the one number of heads of all caches and the size of a head, or why there is no such number.
func (f *Interface) Uniform() (heads, dim int64, why string) {
	keys, values := f.Heads()
	if why := f.coupled(); why != "" {
		return 0, 0, why
	}
	for _, c := range f.Caches {
		if c.Dim != f.Caches[0].Dim {
			return 0, 0, fmt.Sprintf("heads have different sizes, %d in %q and %d in %q", f.Caches[0].Dim, f.Caches[0].Past, c.Dim, c.Past)
		}
	}
	all := slices.Concat(keys, values)
	if slices.Min(all) != slices.Max(all) {
		return 0, 0, fmt.Sprintf("layers have different numbers of heads, %d to %d", slices.Min(all), slices.Max(all))
	}
	return all[0], f.Caches[0].Dim, ""
}

// coupled says why keys and values of a layer are not alike; empty when they are.
func (f *Interface) coupled() string {
	var keys, values []Cache
	for _, c := range f.Caches {
		if c.Heads == 0 || c.Dim == 0 {
			return fmt.Sprintf("cache %q is not [batch, heads, positions, head size] with fixed heads and head size", c.Past)
		}
		if c.Value || c.Both {
			values = append(values, c)
		}
		if !c.Value || c.Both {
			keys = append(keys, c)
		}
	}
	if len(keys) == 0 || len(keys) != len(values) {
		return fmt.Sprintf("it has %d caches of keys and %d of values", len(keys), len(values))
	}
	for i, k := range keys {
		switch v := values[i]; {
		case k.Heads != v.Heads:
			return fmt.Sprintf("layer %d has %s and %s", i, counted(k.Heads, "key head"), counted(v.Heads, "value head"))
		case k.Dim != v.Dim:
			return fmt.Sprintf("layer %d has key heads of %d and value heads of %d", i, k.Dim, v.Dim)
		}
	}
	return ""
}

// counted is a number of things: "1 key head", "2 key heads".
func counted(n int64, noun string) string {
	if n != 1 {
		noun += "s"
	}
	return fmt.Sprintf("%d %s", n, noun)
}
